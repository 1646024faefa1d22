"""A Ray cluster of several nodes on this machine, closed to all without its token, and runs on it that meet faults."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader
from training import Mlp, new_trainer, rows

import shipline as sl
from shipline.train import RayCluster

QUIET = {"include_dashboard": False, "node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}


@contextlib.contextmanager
def ray_cluster(nodes: int, cpus: int = 1, *, token: bool = True, **head: Any) -> Iterator[Any]:
    """A cluster of so many nodes with so many CPUs each, and this process with its token."""
    before = dict(os.environ)
    os.environ |= {
        "RAY_AUTH_MODE": "token" if token else "disabled", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    }  # fmt: skip
    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config
    from ray.cluster_utils import Cluster

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")  # ray may have been imported before
    ray_constants.ENABLE_RAY_CLUSTER, cluster_of_machines = False, ray_constants.ENABLE_RAY_CLUSTER
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "no_monitor": True, **QUIET, **head})
    try:
        for _ in range(nodes - 1):
            add_node(cluster, cpus)
        yield cluster
    finally:
        ray.shutdown()
        for node in (*cluster.worker_nodes, cluster.head_node):  # Cluster.shutdown would ask a head that may be gone
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        ray_constants.ENABLE_RAY_CLUSTER = cluster_of_machines
        os.environ.clear()
        os.environ.update(before)
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")


def add_node(cluster: Any, cpus: int = 1) -> Any:
    """Let another node join."""
    return cluster.add_node(num_cpus=cpus, **QUIET)


class Fault(sl.Callback):
    """Does something to one worker at one step, once: its file says that it has.

    Args:
        what: one of FAULTS.
        step: in which.
        worker: its rank; or a node's id: all workers that are not on it.
        marks: the directory of the file.
        again: do it at each attempt.
    """

    def __init__(self, what: str, step: int, worker: int | str, marks: Path, *, again: bool = False) -> None:
        self.what, self.step, self.worker, self.again = what, step, worker, again
        self.mark, self.driver = marks / f"{what}-{step}", os.getpid()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.step or (self.mark.exists() and not self.again):
            return
        import ray

        node = ray.get_runtime_context().get_node_id()
        if self.worker != trainer.global_rank if isinstance(self.worker, int) else self.worker == node:
            return
        part = self.mark.with_suffix(f".{trainer.global_rank}")
        part.write_text(node)
        part.rename(self.mark)
        FAULTS[self.what](self, module)


def _hang_until_killed(_fault: Fault, _module: Any) -> None:
    threading.Event().wait()


def _term_driver_and_hang(fault: Fault, _module: Any) -> None:
    os.kill(fault.driver, signal.SIGTERM)
    threading.Event().wait()


def _cut(_fault: Fault, _module: Any) -> None:
    """Break the connections to the other workers, as a network does; those to Ray stay."""
    others = [p for p in psutil.process_iter() if p.pid != os.getpid() and "RayTrainWorker" in " ".join(_command(p))]
    theirs = {each.laddr for other in others for each in other.net_connections("tcp")}
    for each in psutil.Process().net_connections("tcp"):
        if each.raddr in theirs and each.fd >= 0:
            with socket.socket(fileno=os.dup(each.fd)) as end:
                end.shutdown(socket.SHUT_RDWR)


def _no_memory(_fault: Fault, _module: Any) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    torch.ones(1 << 30)


def _raise(_fault: Fault, _module: Any) -> None:
    raise ValueError("row 7 has no label")


def _nan(_fault: Fault, module: Any) -> None:
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))


FAULTS: dict[str, Callable[[Fault, Any], object]] = {
    "kill": lambda _fault, _module: os.kill(os.getpid(), signal.SIGKILL),
    "cut": _cut,
    "crash": lambda _fault, _module: ctypes.string_at(0),
    "term": lambda _fault, _module: os.kill(os.getpid(), signal.SIGTERM),
    "term driver": lambda fault, _module: os.kill(fault.driver, signal.SIGTERM),
    "term driver and hang": _term_driver_and_hang,
    "lose node": _hang_until_killed,
    "no memory": _no_memory,
    "raise": _raise,
    "nan": _nan,
}


def die_once_as_workers_join() -> None:
    """Runs when a process of a cluster begins: kills worker 1 the first time that it joins the others."""
    import torch.distributed as dist

    join = dist.init_process_group

    def join_or_die(*arguments: Any, rank: int, **others: Any) -> None:
        mark = Path(os.environ["SHIPLINE_TEST_MARK"])
        if rank == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        join(*arguments, rank=rank, **others)

    dist.init_process_group = join_or_die


def alive_workers() -> int:
    """How many processes of workers this process, or what it has started, has left."""
    processes = psutil.Process().children(recursive=True)
    return sum("RayTrainWorker" in " ".join(_command(process)) for process in processes)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class Net(Mlp):
    """With dropout, so that a run that goes on must have the generators' states, too; it counts its rows."""

    def __init__(self) -> None:
        super().__init__(dropout=0.5)

    def on_fit_start(self) -> None:
        torch.set_num_threads(1)


class Seen(sl.Callback):
    """Writes down the rows that each worker was given: epoch, step in it, batch in that, attempt, workers, rows."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        from shipline.train.launch import worker

        step, part = divmod(trainer.progress.batches - 1, trainer.accumulate_grad_batches)
        about = [trainer.current_epoch, step, part, len(worker._attempt.history), trainer.world_size]
        with (self.path / f"rows-{trainer.global_rank}").open("a") as file:
            file.write(" ".join(map(str, [*about, *batch[2].tolist()])) + "\n")


class Paced(sl.Callback):
    """Lets steps take their time while there are few workers, so that more can come before the run has ended."""

    def __init__(self, few: int, seconds: float) -> None:
        self.few, self.seconds = few, seconds

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.world_size <= self.few:
            time.sleep(self.seconds / trainer.accumulate_grad_batches)


class ByHand:
    """A loop by hand; once, one of its workers is told that it will be taken away.

    Args:
        marks: the directory of the file that says that it was; None: it is not.
    """

    def __init__(self, marks: Path | None = None) -> None:
        self.mark = None if marks is None else marks / "told"

    def __call__(self, loop: Any) -> list[Any]:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        net = Net().layers
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        wrapped, optimizer, rows = loop.prepare(net, optimizer, loader(160, 10))
        for _ in loop.epochs(6):
            for image, digit, _ in rows:
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(wrapped(image), digit).backward()
                optimizer.step()
                time.sleep(0.05)
                if self.mark is not None and loop.rank == 1 and loop.global_step == 11 and not self.mark.exists():
                    self.mark.touch()
                    os.kill(os.getpid(), signal.SIGTERM)
        return [tensor.tolist() for tensor in net.state_dict().values()]


def loader(count: int, batch_size: int) -> DataLoader[Any]:
    """Shuffled rows: image, digit, and the row's number."""
    images, digits = rows(0, count).tensors
    return DataLoader(torch.utils.data.TensorDataset(images, digits, torch.arange(count)), batch_size, shuffle=True)


class NumberedNet(Net):
    """Of rows that carry their number."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch[:2], batch_idx)


def train(
    root: Path,
    *callbacks: sl.Callback,
    epochs: int = 4,
    count: int = 160,
    batch_size: int = 10,
    every: int = 3,
    ckpt_path: str | None = None,
    module: Any = None,
    cluster: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[sl.Trainer, Any]:
    """Train on two workers, 8 steps an epoch, with a checkpoint after every third; return trainer and module."""
    sl.seed_everything(1)
    module = NumberedNet() if module is None else module
    keeper = sl.ModelCheckpoint(every_n_train_steps=every, save_top_k=-1)
    settings: dict[str, Any] = {"workers": 2, "cluster": RayCluster(**{"wait_s": 60, **(cluster or {})})}
    trainer = new_trainer(
        root, name="net", max_epochs=epochs, callbacks=[*callbacks, keeper], **{**settings, **options}
    )
    trainer.fit(module, loader(count, batch_size), ckpt_path=ckpt_path)
    return trainer, module
