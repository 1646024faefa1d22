"""Microseconds a training step: a hand-written PyTorch loop, Shipline's Trainer and PyTorch Lightning's, side by side.

    python benchmarks/training.py [--rounds 5] [--steps 3000]

A tiny MLP at batch 32, one thread: overhead is nearly all there is. Every loop trains the same weights on the same
batches in the same order, so all must end at the same loss. Each measurement is a fresh process; the rounds are
interleaved, and the ratio to the hand-written loop is taken within a round. "off" is without logging, checkpoints and
progress bar.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

BATCH = 32
WARM_UP = 200


class Timed(nn.Module):
    """64-64-10, which notes the time of each forward pass in training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.ticks: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        if self.training:
            self.ticks.append(time.perf_counter())
        out: torch.Tensor = self.net(x)
        return out


def batches(steps: int) -> DataLoader[list[torch.Tensor]]:
    """Return one epoch of that many steps, in an order that no framework can disturb."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(steps * BATCH, generator=torch.Generator().manual_seed(0)) % len(x)
    rows = TensorDataset(torch.tensor(x / 16, dtype=torch.float32)[order], torch.tensor(y)[order])
    return DataLoader(rows, BATCH)


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW."""
    return torch.optim.AdamW(net.parameters(), lr=1e-3)


def by_hand(net: Timed, loader: Any) -> None:
    """Train with the loop that everybody writes."""
    steps = optimizer(net)
    for x, y in loader:
        steps.zero_grad()
        F.cross_entropy(net(x), y).backward()
        steps.step()


def with_trainer(net: Timed, loader: Any, base: Any, trainer: Any, log: bool) -> None:
    """Train with a Trainer of the one kind or the other: the same module, another base class."""

    class Module(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            if log:
                self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer(self.net)

    trainer.fit(Module(), loader)


def one(loop: str, steps: int) -> dict[str, float]:
    """Run one loop in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, loader = Timed(), batches(steps)
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as scratch:
        options = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": scratch}
        if loop == "by hand":
            by_hand(net, loader)
        elif loop.startswith("shipline"):
            import shipline as sl

            trainer: Any = sl.Trainer(**options, **(off if loop.endswith("off") else {}))
            with_trainer(net, loader, sl.Module, trainer, log=not loop.endswith("off"))
        else:
            import pytorch_lightning as pl

            quiet = {**off, "enable_model_summary": False} if loop.endswith("off") else {}
            with_trainer(net, loader, pl.LightningModule, pl.Trainer(**options, **quiet), log=not loop.endswith("off"))
    ticks = net.ticks
    net.eval()
    x, y = load_digits(return_X_y=True)
    with torch.no_grad():
        loss = F.cross_entropy(net(torch.tensor(x / 16, dtype=torch.float32)), torch.tensor(y)).item()
    return {"us": (ticks[-1] - ticks[WARM_UP]) / (len(ticks) - 1 - WARM_UP) * 1e6, "loss": loss}


LOOPS = ("by hand", "shipline", "shipline off", "lightning", "lightning off")


def measure(rounds: int, steps: int) -> dict[str, list[dict[str, float]]]:
    """Return what each loop took, in each round."""
    found: dict[str, list[dict[str, float]]] = {loop: [] for loop in LOOPS}
    for _ in range(rounds):
        for loop in LOOPS:
            command = [sys.executable, __file__, "--one", loop, "--steps", str(steps)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            found[loop].append(json.loads(done.stdout.strip().splitlines()[-1]))
    losses = {round(row["loss"], 5) for rows in found.values() for row in rows}
    if len(losses) > 1:
        raise SystemExit(f"The loops did not train alike: {losses}")
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return the medians in Markdown."""
    lines = ["| loop | µs a step | times the loop by hand |", "|---|---|---|"]
    for loop, rows in found.items():
        ratios = [row["us"] / base["us"] for row, base in zip(rows, found["by hand"], strict=True)]
        lines.append(f"| {loop} | {statistics.median(r['us'] for r in rows):.0f} | {statistics.median(ratios):.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--one", choices=LOOPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        warnings.simplefilter("ignore")
        print("\n" + json.dumps(one(arguments.one, arguments.steps)))
    else:
        print(table(measure(arguments.rounds, arguments.steps)))


if __name__ == "__main__":
    main()
