"""Lightning's own callbacks in our Trainer: those that only its can run become ours, with their settings."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import callbacks as lightning
from pytorch_lightning.callbacks.throughput_monitor import ThroughputMonitor
from training import Mlp, Recorder, new_trainer, train_loader, val_loader

import shipline.train as ours
from shipline.train import Callback


def settings(callback: Callback) -> dict[str, Any]:
    """What a callback was made with: all that there is to it before it has run."""
    return {name: pickle.dumps(value) for name, value in vars(callback).items()}


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (lightning.DeviceStatsMonitor(cpu_stats=True), ours.DeviceStatsMonitor(cpu_stats=True)),
        (ThroughputMonitor(len, max, window_size=7), ours.ThroughputMonitor(len, max, window_size=7)),
        (lightning.GradientAccumulationScheduler({2: 4}), ours.GradientAccumulationScheduler({2: 4})),
        (lightning.OnExceptionCheckpoint("/somewhere", "it"), ours.OnExceptionCheckpoint("/somewhere", "it")),
        (lightning.TQDMProgressBar(5, 1, leave=True), ours.TQDMProgressBar(5, 1, leave=True)),
        (lightning.RichProgressBar(leave=True), ours.RichProgressBar(leave=True)),
        (lightning.RichModelSummary(max_depth=3), ours.ModelSummary(max_depth=3)),
    ],
)
def test_one_of_lightnings_becomes_ours_with_its_settings(theirs: Any, expected: Callback, tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, callbacks=theirs, logger=Recorder(), enable_checkpointing=False, max_epochs=1)
    (found,) = trainer.callbacks
    assert type(found) is type(expected)
    assert settings(found) == settings(expected)


def test_others_run_as_they_are(tmp_path: Path) -> None:
    """What they find is in their own attributes, where their owner looks for it."""
    calls: list[str] = []
    stopping, timer = lightning.EarlyStopping("val_loss", patience=1, min_delta=9.0), lightning.Timer()
    plain = lightning.LambdaCallback(on_train_start=lambda *_: calls.append("start"))
    callbacks = [stopping, timer, plain]
    trainer = new_trainer(tmp_path, callbacks=callbacks, max_epochs=9, logger=False, enable_checkpointing=False)
    trainer.fit(Mlp(), train_loader(32), val_loader(32))
    assert set(trainer.callbacks) == set(callbacks)
    assert (trainer.epochs_done, stopping.wait_count, stopping.stopped_epoch) == (2, 1, 1)
    assert timer.end_time("train") is not None
    assert calls == ["start"]
