"""Runs with checkpoints on a disk that is full, or with a large state; prints what came of it.

python checkpoint_faults.py memory|full DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import torch
from training import Mlp, Scripted, new_trainer, numbers, on_hook, same_weights, train_loader

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import ShiplineError, TrainingError
from shipline.train.checkpoints import Writer

SIZE_MB = 200


class Large(Scripted):
    """Holds a table of 200 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(SIZE_MB << 18))


def status_mb(name: str) -> float:
    """A figure of this process's memory: VmRSS is what it holds, VmHWM the most that it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def memory(directory: Path) -> dict[str, Any]:
    module, held = Large(), 0.0

    def begin(*_arguments: Any) -> None:
        nonlocal held
        Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM counts anew
        held = status_mb("VmRSS")

    keep = sl.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
    trainer = new_trainer(directory, max_epochs=1, callbacks=[on_hook("on_train_start", begin), keep])
    run = trainer.fit(module, numbers(3))
    made = [path for path in Path(str(run.url)).rglob("manifest.json") if path.stat().st_size]
    return {"checkpoints": len(made), "grown_mb": status_mb("VmHWM") - held}


def full(directory: Path) -> dict[str, Any]:
    """Keep every checkpoint until there is no more room; then go on from the last one elsewhere."""

    def fit(root: Path, ckpt_path: str | None = None) -> Mlp:
        torch.manual_seed(0)
        module = Mlp(hidden=700)
        keep = sl.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
        impatient = on_hook("on_fit_start", lambda trainer, _m: setattr(trainer.saver, "writer", Writer(retry_for=0.0)))
        trainer = new_trainer(root, max_epochs=2, logger=False, callbacks=[impatient, keep])
        trainer.fit(module, train_loader(256), ckpt_path=ckpt_path)
        return module

    try:
        fit(directory / "small")
        error = "none"
    except TrainingError as found:
        error = str(found)
    kept = directory / "small" / "mlp" / "version_0" / "checkpoints"
    there = [path.parent for path in kept.rglob("manifest.json")]
    last = error.partition("The last good one of this run: ")[2].partition(". Make room")[0]
    elsewhere = directory / "large"
    return {
        "error": error,
        "there": len(there),
        "good": sum(_is_good(path) for path in there),
        "leftovers": [
            str(path) for path in kept.rglob("*") if path.is_file() and not any(map(path.is_relative_to, there))
        ],
        "goes_on": same_weights(fit(elsewhere, last), fit(elsewhere)),
    }


def _is_good(path: Path) -> bool:
    try:
        checkpoint = open_checkpoint(str(path))
        for name in checkpoint.manifest.files:
            checkpoint.read(name)
    except ShiplineError:
        return False
    return True


if __name__ == "__main__":
    print(json.dumps({"memory": memory, "full": full}[sys.argv[1]](Path(sys.argv[2]))))
