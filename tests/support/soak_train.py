"""A run whose workers are killed by chance, beside one whose workers are not; it is long enough for all of the kills.

    python soak_train.py [KILLS] [MEAN_SECONDS_BETWEEN] [SEED]

Default: 20 kills, 30 seconds. Prints each restart, then which share of the time was training that counted, and whether
the weights are the same. Fails where they are not, where a worker was not killed that was to be, or where less than
90 % of the time counted though there were 300 seconds between two kills.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from clusters import Net, train

import shipline as sl

ROWS, BATCH = 1280, 32
STEPS = ROWS // BATCH // 2  # of an epoch, with two workers
SLOW_S = 0.02


class Slow(Net):
    """Takes some time over each step, as real models do."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(SLOW_S)
        return super().training_step(batch[:2], batch_idx)


class Clock(sl.Callback):
    """Notes when the first step of all was made, and the last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_rank == 0:
            if not (self.path / "first").exists():
                (self.path / "first").write_text(repr(time.time()))
            (self.path / "last").write_text(repr(time.time()))

    def seconds(self) -> float:
        """From the first step to the last."""
        return float((self.path / "last").read_text()) - float((self.path / "first").read_text())


class Punisher(threading.Thread):
    """Kills a worker of this process's cluster after each of some waits; the first begins with the first step."""

    def __init__(self, waits: list[float], seed: int, clock: Clock) -> None:
        super().__init__(daemon=True)
        self.waits, self.random, self.clock, self.killed = waits, random.Random(seed), clock, 0
        self.ended = threading.Event()

    def run(self) -> None:
        for seconds in self.waits:
            while not (self.clock.path / "first").exists() and not self.ended.wait(0.1):
                pass
            self.ended.wait(seconds)
            while not (workers := _workers()) and not self.ended.wait(0.1):  # those killed before may not be back
                pass
            if self.ended.is_set():
                return
            victim = self.random.choice(workers)
            victim.kill()
            self.killed += 1
            print(f"killed process {victim.pid}; {len(self.waits) - self.killed} left", flush=True)


def _workers() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if "RayTrainWorker" in _name(process)]


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def fit(root: Path, epochs: int, waits: list[float], seed: int = 0) -> tuple[float, Any, int]:
    """Train; return the seconds from the first step to the last, the module, and how many workers were killed."""
    root.mkdir()
    clock = Clock(root)
    punisher = Punisher(waits, seed, clock)
    punisher.start()
    _, module = train(
        root, clock, epochs=epochs, count=ROWS, batch_size=BATCH, every=STEPS, module=Slow(),
        cluster={"max_losses": -1},
    )  # fmt: skip
    punisher.ended.set()
    punisher.join()
    return clock.seconds(), module, punisher.killed


def main(kills: int = 20, mean_s: float = 30.0, seed: int = 0) -> int:
    """Run both; return the exit status."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        seconds, _, _ = fit(root / "short", 3, [])
        chance = random.Random(seed)
        waits = [chance.expovariate(1 / mean_s) for _ in range(kills)]
        epochs = 3 + math.ceil(sum(waits) / (seconds / 3))
        alone, expected, _ = fit(root / "alone", epochs, [])
        disturbed, module, killed = fit(root / "killed", epochs, waits, seed)
    pairs = zip(expected.state_dict().values(), module.state_dict().values(), strict=True)
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    share = 100 * alone / disturbed
    lost = (disturbed - alone) / max(1, killed)
    print(f"{killed} kills, {mean_s:g} s between two: {disturbed:.0f} s, of which {alone:.0f} s count: {share:.1f} %")
    print(f"seconds lost by a kill: {lost:.1f}; largest difference of weights: {difference}")
    return int(difference != 0 or killed < kills or (mean_s >= 300 and share < 90))


if __name__ == "__main__":
    sys.exit(main(*(kind(word) for kind, word in zip((int, float, int), sys.argv[1:], strict=False))))
