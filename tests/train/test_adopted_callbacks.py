"""Lightning's own callbacks in our Trainer: those that reach into its become ours, with their settings."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import callbacks as lightning
from pytorch_lightning.callbacks.spike import SpikeDetection
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
        (
            lightning.LearningRateMonitor("step", log_momentum=True, log_weight_decay=True),
            ours.LearningRateMonitor("step", log_momentum=True, log_weight_decay=True),
        ),
        (lightning.DeviceStatsMonitor(cpu_stats=True), ours.DeviceStatsMonitor(cpu_stats=True)),
        (ThroughputMonitor(len, max, window_size=7), ours.ThroughputMonitor(len, max, window_size=7)),
        (lightning.Timer({"minutes": 5}, "epoch", False), ours.Timer({"minutes": 5}, "epoch", False)),
        (lightning.Timer(), ours.Timer()),
        (lightning.GradientAccumulationScheduler({2: 4}), ours.GradientAccumulationScheduler({2: 4})),
        (lightning.OnExceptionCheckpoint("/somewhere", "it"), ours.OnExceptionCheckpoint("/somewhere", "it")),
        (SpikeDetection("max", 5, 2, 1.0, None, "/x"), ours.SpikeDetection("max", 5, 2, 1.0, None, "/x")),
        (
            lightning.EarlyStopping("a", 0.5, 7, True, "max", False, False, 1.0, 2.0, True),
            ours.EarlyStopping("a", 0.5, 7, True, "max", False, False, 1.0, 2.0, True),
        ),
        (lightning.EarlyStopping("a", min_delta=0.5), ours.EarlyStopping("a", min_delta=0.5)),
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
    calls: list[str] = []

    class Mine(lightning.EarlyStopping):
        def on_train_end(self, *_: Any) -> None:
            calls.append(str(self.wait_count))

    mine = Mine("val_loss", patience=1, min_delta=9.0)
    plain = lightning.LambdaCallback(on_train_start=lambda *_: calls.append("start"))
    trainer = new_trainer(tmp_path, callbacks=[mine, plain], max_epochs=9, logger=False, enable_checkpointing=False)
    trainer.fit(Mlp(), train_loader(32), val_loader(32))
    assert mine in trainer.callbacks
    assert plain in trainer.callbacks
    assert calls == ["start", "1"]
    assert trainer.epochs_done == 2
