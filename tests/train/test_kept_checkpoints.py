"""Which checkpoints are kept, beside Lightning's ModelCheckpoint on the same run."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from beside_lightning import lightning_trainer
from torch import nn
from training import Mlp, bare_trainer, new_trainer, numbers, on_hook, same_weights, train_loader

import shipline as sl
from shipline.checkpoint import open_checkpoint

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet_lightning")]  # Lightning's

SCORES = (4.0, 5.0, 2.0, 1.5, 3.0, 1.0, float("nan"), 0.5, 6.0, 0.25)


class Clock:
    """Goes on by a second with each training step."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def scored(base: Any, clock: Clock | None = None) -> Any:
    """A module whose validations and steps have these scores."""

    class Scored(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.validations = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if clock is not None:
                clock.now += 1
            self.log("of_step", SCORES[self.global_step % len(SCORES)])
            return (self.weight * batch[0]).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", SCORES[self.validations])

        def on_validation_epoch_end(self) -> None:
            self.validations += 1

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Scored()


def kept(directory: Path, clock: Clock | None, checkpoint: dict[str, Any], options: dict[str, Any]) -> list[Any]:
    """Names of what is there, best, and its score: Lightning's first."""
    found = []
    for name, base, make, callback in (
        ("theirs", lightning.LightningModule, lightning_trainer, lightning.callbacks.ModelCheckpoint),
        ("ours", sl.Module, bare_trainer, sl.ModelCheckpoint),
    ):
        keep = callback(**({"dirpath": str(directory / name), "save_last": False} | checkpoint))
        quiet = {"max_epochs": 5, "num_sanity_val_steps": 0, "enable_checkpointing": True, "callbacks": [keep]}
        make(**(quiet | options)).fit(scored(base, clock), numbers(4), numbers(1))
        pattern, cut = ("*.ckpt", ".ckpt") if name == "theirs" else ("manifest.json", "/manifest.json")
        paths = [path.relative_to(directory / name) for path in (directory / name).rglob(pattern)]
        score = keep.best_model_score
        best = keep.best_model_path.removeprefix(f"{directory / name}/").removesuffix(".ckpt")
        names = sorted(str(path).removesuffix(cut) for path in paths)
        found.append((names, best, None if score is None else float(score)))
    return found


@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        ({}, {}),
        ({"save_top_k": 0}, {}),
        ({"save_top_k": -1}, {"check_val_every_n_epoch": 2}),
        ({"monitor": "score", "save_top_k": 2}, {}),
        ({"monitor": "score", "save_top_k": 3, "mode": "max"}, {}),
        ({"monitor": "score", "save_top_k": 2}, {"val_check_interval": 2}),
        ({"monitor": "score", "save_top_k": 2, "every_n_epochs": 2}, {}),
        ({"monitor": "score", "save_top_k": -1, "save_on_train_epoch_end": True}, {"val_check_interval": 2}),
        ({"save_top_k": -1, "every_n_epochs": 2, "save_on_train_epoch_end": True}, {}),
        ({"every_n_train_steps": 3, "save_top_k": -1}, {}),
        ({"every_n_train_steps": 3}, {}),
        ({"every_n_train_steps": 2, "save_top_k": -1}, {"accumulate_grad_batches": 2}),
        ({"every_n_train_steps": 2, "monitor": "of_step", "save_top_k": 2}, {}),
        ({"every_n_train_steps": 2, "monitor": "score", "save_top_k": 2}, {}),
        ({"every_n_train_steps": 0, "every_n_epochs": 0, "save_top_k": -1}, {}),
        ({"save_top_k": 2, "monitor": "of_step"}, {"limit_val_batches": 0}),
        ({"save_top_k": -1, "filename": "e{epoch:02d}_s{score:.2f}", "auto_insert_metric_name": False}, {}),
        ({"save_top_k": -1, "filename": "{epoch:02d}-{score:.1f}", "monitor": "score"}, {}),
        ({"save_top_k": -1, "filename": "same", "enable_version_counter": False}, {}),
    ],
    ids=str,
)
def test_the_same_are_kept_as_by_lightning(checkpoint: Any, options: Any, tmp_path: Path) -> None:
    theirs, ours = kept(tmp_path, None, checkpoint, options)
    assert ours == theirs


@pytest.mark.parametrize("save_top_k", [1, -1])
def test_by_time_the_same_are_kept_as_by_lightning(
    save_top_k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    interval = {"train_time_interval": timedelta(seconds=3), "save_top_k": save_top_k}
    theirs, ours = kept(tmp_path, clock, interval, {})
    assert ours == theirs
    if save_top_k == -1:
        steps = [int(name.partition("step=")[2]) for name in ours[0]]
        assert sorted(steps) == [3, 6, 9, 12, 15, 18]


def test_a_checkpoint_of_a_failed_run_goes_on_with_the_batch_that_failed(tmp_path: Path) -> None:
    """By ModelCheckpoint(save_on_exception=True), beside those that it keeps in any case."""

    def fail(trainer: Any, _module: Any, _batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 2:
            raise RuntimeError("the power went")

    def fit(name: str, *callbacks: Any, ckpt_path: str | None = None) -> Any:
        torch.manual_seed(0)
        module = Mlp(dropout=0.1)
        keep = sl.ModelCheckpoint(save_on_exception=True)
        trainer = new_trainer(tmp_path, name=name, max_epochs=2, callbacks=[*callbacks, keep])
        trainer.fit(module, train_loader(128), ckpt_path=ckpt_path)
        return module

    with pytest.raises(RuntimeError, match="the power went"):
        fit("failed", on_hook("on_train_batch_start", fail))
    assert open_checkpoint(str(tmp_path / "failed" / "last")).manifest.global_step == 6
    assert open_checkpoint(str(tmp_path / "failed" / "best")).manifest.global_step == 4
    assert same_weights(fit("failed", ckpt_path="last"), fit("whole"))
