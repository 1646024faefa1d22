"""What a Trainer costs: a hand-written PyTorch loop, Shipline's Trainer and PyTorch Lightning's, side by side.

    python benchmarks/training.py [--task mlp|transformer] [--rounds 5] [--steps 3000]

"mlp" is tiny, at batch 32: overhead is nearly all there is. "transformer" has real work, tens of milliseconds a step.
One thread. Every loop trains the same weights on the same batches in the same order, so all must end at the same loss.
Each measurement is a fresh process; the rounds are interleaved, and ratios to the hand-written loop are taken within a
round. A step is the time between two forward passes; the first step comes so long after the process was started. "off"
is without logging, checkpoints and progress bar.
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
STEPS = {"mlp": 3000, "transformer": 120}
STARTED = "BENCHMARK_STARTED"


class Encoder(nn.Module):
    """Two layers over the 64 pixels as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        out: torch.Tensor = self.head(self.layers(self.embed(x[..., None])).mean(1))
        return out


class Timed(nn.Module):
    """A net that notes the time of each forward pass in training."""

    def __init__(self, task: str) -> None:
        super().__init__()
        mlp = task == "mlp"
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)) if mlp else Encoder()
        self.first: float | None = None
        self.ticks: list[float] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        if self.training:
            self.first = self.first or time.time()
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


def one(loop: str, task: str, steps: int) -> dict[str, float]:
    """Run one loop in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, loader = Timed(task), batches(steps)
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
    ticks, warm_up = net.ticks, len(net.ticks) // 15
    assert net.first is not None
    net.eval()
    x, y = load_digits(return_X_y=True)
    with torch.no_grad():
        loss = F.cross_entropy(net(torch.tensor(x / 16, dtype=torch.float32)), torch.tensor(y)).item()
    return {
        "us": (ticks[-1] - ticks[warm_up]) / (len(ticks) - 1 - warm_up) * 1e6,
        "first": net.first - float(os.environ[STARTED]),
        "loss": loss,
    }


LOOPS = ("by hand", "shipline", "shipline off", "lightning", "lightning off")


def measure(task: str, rounds: int, steps: int) -> dict[str, list[dict[str, float]]]:
    """Return what each loop took, in each round."""
    found: dict[str, list[dict[str, float]]] = {loop: [] for loop in LOOPS}
    for _ in range(rounds):
        for loop in LOOPS:
            command = [sys.executable, __file__, "--one", loop, "--task", task, "--steps", str(steps)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", STARTED: str(time.time())}
            environment.pop("PYTHONDONTWRITEBYTECODE", None)  # what is installed has its bytecode beside it
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            found[loop].append(json.loads(done.stdout.strip().splitlines()[-1]))
    losses = {round(row["loss"], 4) for rows in found.values() for row in rows}
    if len(losses) > 1:
        raise SystemExit(f"The loops did not train alike: {losses}")
    return found


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Return the medians in Markdown."""
    lines = [
        "| loop | µs a step | times the loop by hand | first step after, s | times the loop by hand |",
        "|---|---|---|---|---|",
    ]
    for loop, rows in found.items():
        cells = []
        for name, digits in (("us", 0), ("first", 2)):
            ratios = [row[name] / base[name] for row, base in zip(rows, found["by hand"], strict=True)]
            cells += [f"{statistics.median(row[name] for row in rows):.{digits}f}", f"{statistics.median(ratios):.3f}"]
        lines.append(f"| {loop} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--task", choices=STEPS, default="mlp")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--one", choices=LOOPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps = arguments.steps or STEPS[arguments.task]
    if arguments.one:
        warnings.simplefilter("ignore")
        print("\n" + json.dumps(one(arguments.one, arguments.task, steps)))
    else:
        print(table(measure(arguments.task, arguments.rounds, steps)))


if __name__ == "__main__":
    main()
