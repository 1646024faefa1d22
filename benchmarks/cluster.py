"""Training on a Ray cluster of this machine: start, steps, recovery; and its controller with workers that do nothing.

    python benchmarks/cluster.py [start] [steps] [recovery] [scale] [--rounds 3] [--plot runs/cluster.svg]

"start": from `fit` to the end of the first step, beside Ray Train's own TorchTrainer with a hand-written loop; each in
a fresh process, rounds interleaved, ratios within a round. "again" is a second run of the same process, for which the
cluster was kept (`keep_warm`). "steps": two workers with one thread each, beside the hand-written loop under torchrun.
"recovery": a worker is killed; from there to the next step. "scale" is a SIMULATION without a cluster: what our part of
Ray Train's controller costs for so many workers, at one look at them and at one decision about a fault, given what they
would have said; and the sizes of a checkpoint's manifest, with two parts of each worker, and of the state of all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

STEPS = {"start": 3, "steps": 200}
WIDTH = {"start": 64, "steps": 1024}
BATCH = 64
SIZES = (8, 64, 512)


def net(width: int) -> nn.Module:
    """A network of three layers, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def rows(steps: int, workers: int) -> TensorDataset:
    """Rows for so many steps of all workers."""
    generator = torch.Generator().manual_seed(0)
    count = steps * BATCH * workers
    return TensorDataset(torch.randn(count, 64, generator=generator), torch.randint(10, (count,), generator=generator))


def by_hand(task: str, wrap: Callable[[nn.Module], nn.Module], share: Callable[[Any], Any]) -> dict[str, float]:
    """The loop that people write."""
    torch.set_num_threads(1)
    model, data = wrap(net(WIDTH[task])), share(rows(STEPS[task], 2))
    optimizer = torch.optim.AdamW(model.parameters())
    ticks = []
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        ticks.append(time.time())
    return {"first": ticks[0], "step": statistics.median(b - a for a, b in itertools.pairwise(ticks))}


def hand_on_ray(task: str) -> dict[str, float]:
    """The loop by hand in Ray Train's TorchTrainer."""
    import ray
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model

    def loop() -> dict[str, float]:
        share = lambda data: prepare_data_loader(DataLoader(data, BATCH))  # noqa: E731
        return by_hand(task, prepare_model, share)

    begun = time.time()
    ray.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    found = TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=2)).fit().return_value
    ray.shutdown()
    return {"first": found["first"] - begun, "step": found["step"], "all": time.time() - begun}


def hand_on_torchrun(task: str) -> None:
    """One of the processes that torchrun has started."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DistributedSampler

    dist.init_process_group("gloo")
    share = lambda data: DataLoader(data, BATCH, sampler=DistributedSampler(data, shuffle=False))  # noqa: E731
    found = by_hand(task, DistributedDataParallel, share)
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def ours(task: str, again: bool) -> dict[str, float]:
    """The same with Shipline's Trainer."""
    import shipline as sl
    from shipline.train import RayCluster

    class Net(sl.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(WIDTH[task])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    class Ticks(sl.Callback):
        ticks: list[float]

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            torch.set_num_threads(1)
            self.ticks = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.ticks.append(time.time())

    found: dict[str, float] = {}
    for name in ("", "again ") if again else ("",):
        begun, ticks = time.time(), Ticks()
        with tempfile.TemporaryDirectory() as root:
            trainer = sl.Trainer(
                max_epochs=1, workers=2, accelerator="cpu", default_root_dir=root, callbacks=[ticks], logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                cluster=RayCluster(keep_warm=again),
            )  # fmt: skip
            trainer.fit(Net(), DataLoader(rows(STEPS[task], 2), BATCH))
        times = ticks.ticks
        found |= {f"{name}first": times[0] - begun, f"{name}all": time.time() - begun}
        found["step"] = statistics.median(b - a for a, b in itertools.pairwise(times))
    return found


def recovery() -> dict[str, float]:
    """Kill a worker in the middle; return how long it took until the next step."""
    import signal

    import shipline as sl
    from shipline.train.launch import worker

    class Net(sl.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(64)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    class Kill(sl.Callback):
        def __init__(self, root: Path) -> None:
            self.root = root

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            killed = self.root / "killed"
            if trainer.global_rank == 1 and trainer.global_step == 25 and not killed.exists():
                killed.write_text(str(time.time()))
                os.kill(os.getpid(), signal.SIGKILL)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            after = self.root / "after"
            if trainer.global_rank == 0 and worker._attempt.restarted and not after.exists():  # noqa: SLF001
                after.write_text(f"{time.time()} {trainer.global_step}")

    with tempfile.TemporaryDirectory() as root:
        keeper = sl.ModelCheckpoint(every_n_train_steps=10)
        trainer = sl.Trainer(
            max_epochs=1, workers=2, accelerator="cpu", default_root_dir=root, callbacks=[Kill(Path(root)), keeper],
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Net(), DataLoader(rows(60, 2), BATCH))
        at, step = map(float, (Path(root) / "after").read_text().split())
        killed = float((Path(root) / "killed").read_text())
    return {"seconds": at - killed, "repeated": 25 - (step - 1)}


def scale(workers: int) -> dict[str, float]:
    """SIMULATION: what one look at so many workers costs the controller, and how large a checkpoint's state is."""
    from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus, WorkerStatus
    from ray.train.v2.api.exceptions import WorkerGroupError

    from shipline.train import RayCluster
    from shipline.train.checkpoints.tree import encode_tree
    from shipline.train.launch.controller import Budgets, Watch
    from shipline.train.launch.faults import Where, WorkerError
    from shipline.train.seed import rng_state

    watch = Watch(RayCluster())
    watch._places = {rank: Where(rank, workers, "10.0.0.1", rank) for rank in range(workers)}  # noqa: SLF001
    healthy = WorkerGroupPollStatus({rank: WorkerStatus(running=True) for rank in range(workers)})
    echoes = {r: WorkerError(w, 7, "Connection closed by peer", echo=r > 0) for r, w in watch._places.items()}  # noqa: SLF001
    failed = WorkerGroupError("", echoes)
    look = timed(lambda: watch.after_worker_group_poll_status(healthy))
    decide = timed(lambda: Budgets(RayCluster(max_failures=-1), 300.0).make_decision(failed))
    own = {"rng": rng_state(), "train_feed": {"position": 3, "start": {"global": rng_state(), "own": []}}}
    state, tensors = encode_tree({"workers": [own for _ in range(workers)]})
    size = len(bytes(state)) + sum(tensor.nbytes for tensor in tensors.values())
    sizes = {"manifest KB": manifest_size(workers) / 1000, "state KB": size / 1000}
    return {"look ms": look * 1000, "decide ms": decide * 1000, **sizes}


def manifest_size(workers: int) -> int:
    """Bytes of the manifest of a checkpoint to which each worker has added a part of the weights and of the state."""
    from shipline.checkpoint import CheckpointManifest
    from shipline.store import FileEntry
    from shipline.store.commit import seal

    names = [
        f"{stem}-{r:05d}-of-{workers:05d}.safetensors" for stem in ("weights", "state/shards") for r in range(workers)
    ]
    files = {name: FileEntry(key=f"data-{'0' * 12}/{name}", size=10**9, sha256="0" * 64) for name in names}
    return len(seal(CheckpointManifest(module="net.Net", epoch=1, global_step=1000, files=files))[1])


def timed(function: Callable[[], Any], times: int = 20) -> float:
    """The median of the seconds that a call takes."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        function()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def child(*arguments: str, torchrun: bool = False) -> dict[str, float]:
    """Run one measurement in a process of its own."""
    program = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"] if torchrun else []
    command = [sys.executable, "-W", "ignore", *program, __file__, "--child", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def median(values: list[float]) -> str:
    """The median and the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def show_start(rounds: int) -> None:
    """Start times, beside Ray Train's own."""
    found = [(child("ray", "start"), child("ours", "start"), child("again", "start")) for _ in range(rounds)]
    print("| from fit to the first step | s | times Ray Train's own |\n|---|---|---|")
    print(f"| Ray Train, loop by hand | {median([ray['first'] for ray, _, _ in found])} | 1.00 |")
    for name, values in {
        "shipline": [(our["first"], ray["first"]) for ray, our, _ in found],
        "shipline, again on the kept cluster": [(warm["again first"], ray["first"]) for ray, _, warm in found],
    }.items():
        print(f"| {name} | {median([a for a, _ in values])} | {median([a / b for a, b in values])} |")


def show_steps(rounds: int) -> None:
    """Steps of two workers, beside torchrun's."""
    found = [(child("torchrun", "steps", torchrun=True), child("ours", "steps")) for _ in range(rounds)]
    print("| two workers | ms a step | efficiency |\n|---|---|---|")
    print(f"| torchrun, loop by hand | {median([hand['step'] * 1000 for hand, _ in found])} | 1.00 |")
    ratios = [hand["step"] / our["step"] for hand, our in found]
    print(f"| shipline | {median([our['step'] * 1000 for _, our in found])} | {median(ratios)} |")


def show_recovery(rounds: int) -> None:
    """A killed worker."""
    found = [child("recovery", "start") for _ in range(rounds)]
    print("| a worker is killed | |\n|---|---|")
    print(f"| seconds to the next step | {median([each['seconds'] for each in found])} |")
    print(f"| steps made again, of 10 between checkpoints | {median([each['repeated'] for each in found])} |")
    lost = statistics.median(each["seconds"] for each in found)
    print(f"| effective training time with a kill every 5 minutes | {100 * 300 / (300 + lost):.1f} % |")


def show_scale(plot: str | None) -> None:
    """The simulation."""
    found = {size: scale(size) for size in SIZES}
    names = list(found[SIZES[0]])
    print(f"| simulated workers | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
    for size, values in found.items():
        print(f"| {size} | {' | '.join(f'{values[name]:.3f}' for name in names)} |")
    if plot is not None:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(1, len(names), figsize=(12, 4))
        for axis, name in zip(axes, names, strict=True):
            axis.loglog(SIZES, [found[size][name] for size in SIZES], "o-")
            axis.set(xlabel="simulated workers", title=name)
        figure.suptitle("Simulation: workers that do nothing")
        figure.savefig(plot)


CHILDREN: dict[str, Callable[[str], Any]] = {
    "ray": hand_on_ray,
    "torchrun": hand_on_torchrun,
    "ours": lambda task: ours(task, again=False),
    "again": lambda task: ours(task, again=True),
    "recovery": lambda _: recovery(),
}


def main() -> None:
    """Measure what is asked for."""
    if sys.argv[1:2] == ["--child"]:
        found = CHILDREN[sys.argv[2]](sys.argv[3])
        if found is not None:
            print(json.dumps(found))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], help="start, steps, recovery, scale; default: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot")
    options = parser.parse_args()
    shows = {
        "start": lambda: show_start(options.rounds), "steps": lambda: show_steps(options.rounds),
        "recovery": lambda: show_recovery(options.rounds), "scale": lambda: show_scale(options.plot),
    }  # fmt: skip
    for part in options.parts or shows:
        shows[part]()
        print()


if __name__ == "__main__":
    main()
