"""What a checkpoint of 400 MB costs: training's time on the disk, throughput to S3, memory; torch.save beside it.

    python benchmarks/checkpoints.py [--rounds 5]

A CNN trains beside 400 MB of weights that stand still. "lost" is how much longer the 75 steps after a checkpoint take
than as many without one (the median of the others). S3 is a moto server on this machine; its limit is the best of s3fs'
`pipe` and `put` of bytes that are ready. Each measurement is a fresh process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import shipline as sl
from shipline.train.callbacks import ModelCheckpoint

SIZE = 100 * 2**20 * 4
STEPS = 75  # whose time is taken together
EVERY = 300  # steps between two checkpoints
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Heavy(sl.Module):
    """Trains a CNN; 400 MB of its weights stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(1024, 1024), requires_grad=False) for _ in range(100))
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 24 * 24, 10)
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD, which has no state."""
        return torch.optim.SGD(self.net.parameters(), lr=1e-3)


class Saves(sl.Callback):
    """Notes what each 75 steps took, and saves every 300th."""

    def __init__(self, save: Callable[[sl.Trainer], None] | None) -> None:
        self.save, self.took, self.began = save, [], 0.0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note, and save where that is due."""
        if (batch_idx + 1) % STEPS == 0:
            now = time.perf_counter()
            self.took.append(now - self.began)
            self.began = now
            if self.save is not None and (batch_idx + 1) % EVERY == 0:
                self.save(trainer)


def lost(how: str, directory: str) -> dict[str, float]:
    """Return the seconds that training loses by a first checkpoint and by a second one, and what each save takes."""
    saves, callbacks = [], []

    def torch_save(trainer: Any) -> None:
        began = time.perf_counter()
        torch.save(trainer.module.state_dict(), f"{directory}/{trainer.global_step}.pt")
        saves.append(time.perf_counter() - began)

    notes = Saves(torch_save if how == "torch.save" else None)
    if how == "shipline":
        callbacks.append(ModelCheckpoint(directory, every_n_train_steps=EVERY, save_top_k=-1))
    rows = TensorDataset(torch.randn(16 * 3 * EVERY, 1, 28, 28), torch.zeros(16 * 3 * EVERY, dtype=torch.long))
    options: Any = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    sl.Trainer(
        max_epochs=1, callbacks=[notes, *callbacks], enable_checkpointing=bool(callbacks),
        default_root_dir=directory, **options,
    ).fit(Heavy(), DataLoader(rows, 16))  # fmt: skip
    after = [EVERY // STEPS, 2 * EVERY // STEPS]
    base = statistics.median(took for i, took in enumerate(notes.took) if i and i not in after)
    first, second = (notes.took[i] - base for i in after)
    return {"saves": saves[0] if saves else 0.0, "first": first, "second": second}


def upload(how: str, url: str) -> dict[str, float]:
    """Return the seconds that a checkpoint, or bytes of its size that are ready, take to S3."""
    import s3fs

    module = Heavy()
    if how == "shipline":
        options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = sl.Trainer(max_steps=1, enable_model_summary=False, default_root_dir=url, **options)
        rows = TensorDataset(torch.randn(16, 1, 28, 28), torch.zeros(16, dtype=torch.long))
        trainer.fit(module, DataLoader(rows, 16))
        began = time.perf_counter()
        trainer.save_checkpoint(f"{url}/checkpoint")
        return {"seconds": time.perf_counter() - began}
    files = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    with tempfile.NamedTemporaryFile() as ready:
        data = safetensors.torch.save(module.state_dict())
        if how == "put":
            ready.write(data)
            ready.flush()
        began = time.perf_counter()
        if how == "put":
            files.put(ready.name, url.removeprefix("s3://") + "/plain")
        else:
            files.pipe(url.removeprefix("s3://") + "/plain", data)
        return {"seconds": time.perf_counter() - began}


def memory(url: str) -> dict[str, float]:
    """Return the greatest memory during two checkpoints, beyond what training takes, in copies of the state."""
    options: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = sl.Trainer(max_steps=1, enable_model_summary=False, default_root_dir=url, **options)
    rows = TensorDataset(torch.randn(16, 1, 28, 28), torch.zeros(16, dtype=torch.long))
    trainer.fit(Heavy(), DataLoader(rows, 16))
    if url.startswith("s3:"):
        from shipline.store import open_store

        open_store(url).write("warm", b"up")  # what the client itself takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    for name in ("one", "two"):
        trainer.save_checkpoint(f"{url}/{name}")
    return {"copies": (_status("VmHWM") - before) / SIZE}


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


MEASURES = {
    "lost": lost,
    "upload": upload,
    "memory": lambda _how, place: memory(place),
}


@contextlib.contextmanager
def s3() -> Iterator[str]:
    """Run a moto server; yield a bucket's URL."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(300):
            with contextlib.suppress(Exception):
                boto3.client("s3").create_bucket(Bucket="benchmark")
                break
            time.sleep(0.1)
        yield "s3://benchmark"
    finally:
        server.terminate()
        server.wait()


def run(measure: str, how: str, place: str) -> dict[str, float]:
    """Measure in a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", measure, how, place]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(rounds: int) -> None:
    """Measure all in interleaved rounds, and print the medians."""
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    with s3() as bucket:
        for _ in range(rounds):
            for measure, how in (
                ("lost", "torch.save"), ("lost", "shipline"), ("upload", "pipe"), ("upload", "put"),
                ("upload", "shipline"), ("memory", "disk"), ("memory", "s3"),
            ):  # fmt: skip
                with tempfile.TemporaryDirectory() as scratch:
                    place = f"{bucket}/{time.time_ns()}" if measure == "upload" or how == "s3" else scratch
                    rows.setdefault((measure, how), []).append(run(measure, how, place))

    def median(measure: str, how: str, name: str) -> float:
        return statistics.median(row[name] for row in rows[measure, how])

    print("| 400 MB | torch.save | shipline | ratio |\n|---|---|---|---|")
    for name, what in (("first", "training loses by the first, s"), ("second", "training loses by the next, s")):
        pairs = zip(rows["lost", "torch.save"], rows["lost", "shipline"], strict=True)
        ratio = statistics.median(mine[name] / theirs["saves"] for theirs, mine in pairs)
        theirs, mine = median("lost", "torch.save", "saves"), median("lost", "shipline", name)
        print(f"| {what} | {theirs:.3f} | {mine:.3f} | {ratio:.2f} |")
    best = [min(a["seconds"], b["seconds"]) for a, b in zip(rows["upload", "pipe"], rows["upload", "put"], strict=True)]
    mine = median("upload", "shipline", "seconds")
    ratio = statistics.median(a / b["seconds"] for a, b in zip(best, rows["upload", "shipline"], strict=True))
    print("\n| 400 MB to S3 | s3fs, bytes that are ready | shipline | ratio |\n|---|---|---|---|")
    print(f"| MB/s | {SIZE / statistics.median(best) / 1e6:.0f} | {SIZE / mine / 1e6:.0f} | {ratio:.2f} |")
    for how in ("disk", "s3"):
        print(f"\nMost memory beyond training's, to {how}: {median('memory', how, 'copies'):.2f} copies of the state.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is None:
        compare(arguments.rounds)
        return
    measure, how, place = arguments.one
    torch.set_num_threads(1)
    print("\n" + json.dumps(MEASURES[measure](how, place)))


if __name__ == "__main__":
    main()
