"""Lightning's own callbacks in our Trainer: those that only its can run become ours, with their settings."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from pytorch_lightning import callbacks as lightning
from pytorch_lightning.callbacks.throughput_monitor import ThroughputMonitor
from torch import nn
from torch.nn import functional as F
from training import Mlp, Recorder, new_trainer, train_loader, val_loader

import shipline.train as ours
from shipline.errors import ConfigError
from shipline.train import Callback


def settings(callback: Callback) -> dict[str, Any]:
    """What a callback was made with: all that there is to it before it has run."""
    return {name: pickle.dumps(value) for name, value in vars(callback).items() if name not in ("stands_for", "given")}


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


class Classifier(pytorch_lightning.LightningModule):
    """64 pixels -> the logits of ten digits, by a backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Linear(64, 16), nn.ReLU()), nn.Linear(16, 10)
        self.lr, self.losses = 0.1, []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.head(self.backbone(batch[0])), batch[1]))

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=self.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Keeper(lightning.ModelCheckpoint):
    """A class of the user's own, which keeps what Lightning's keeps."""


CALLBACKS: dict[str, Callable[[str], Any]] = {
    "early stopping": lambda _d: lightning.EarlyStopping("val_loss", patience=1, min_delta=0.05),
    "pruning": lambda _d: lightning.ModelPruning("l1_unstructured", amount=0.3),
    "stochastic weight averaging": lambda _d: lightning.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1),
    "exponential moving average": lambda _d: lightning.EMAWeightAveraging(decay=0.9),
    "finetuning": lambda _d: lightning.BackboneFinetuning(unfreeze_backbone_at_epoch=1),
    "accumulation": lambda _d: lightning.GradientAccumulationScheduler({1: 2}),
    "checkpoint": lambda d: lightning.ModelCheckpoint(d, monitor="val_loss", save_top_k=2),
    "one's own checkpoint": lambda d: Keeper(d, monitor="val_loss", save_top_k=2),
}


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.filterwarnings("ignore")  # Lightning's
def test_one_of_lightnings_does_here_what_it_does_there(name: str, tmp_path: Path) -> None:
    found = []
    for trainer_class in (pytorch_lightning.Trainer, ours.Trainer):
        torch.manual_seed(0)
        module, callback = Classifier(), CALLBACKS[name](str(tmp_path / trainer_class.__module__))
        trainer = trainer_class(
            accelerator="cpu", devices=1, max_epochs=3, logger=False, enable_progress_bar=False, callbacks=[callback],
            enable_model_summary=False, default_root_dir=str(tmp_path), enable_checkpointing="checkpoint" in name,
        )  # fmt: skip
        trainer.fit(module, train_loader(128, 32), val_loader(32))
        best = Path(getattr(callback, "best_model_path", "")).stem
        scores = [round(float(score), 6) for score in getattr(callback, "best_k_models", {}).values()]
        weights = {name: tensor.tolist() for name, tensor in module.state_dict().items()}
        found.append((module.losses, weights, trainer.global_step, best, sorted(scores), module.lr))
    assert found[1] == found[0]
    assert found[0][3] or "checkpoint" not in name


@pytest.mark.filterwarnings("ignore")  # Lightning's
def test_what_lightnings_finder_would_find_is_found(tmp_path: Path) -> None:
    found = []
    for trainer_class in (pytorch_lightning.Trainer, ours.Trainer):
        torch.manual_seed(0)
        finder = lightning.LearningRateFinder(min_lr=1e-3, num_training_steps=30, early_stop_threshold=None)
        trainer = trainer_class(
            accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_progress_bar=False, callbacks=[finder],
            enable_model_summary=False, default_root_dir=str(tmp_path), enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(Classifier(), train_loader(512, 16, shuffle=False))
        found.append(finder.optimal_lr)
    assert found[1].suggestion() == pytest.approx(found[0].suggestion())


def test_a_finder_of_ones_own_is_derived_from_ours() -> None:
    class Finder(lightning.LearningRateFinder):
        """Would reach into Lightning's Trainer."""

    with pytest.raises(
        ConfigError, match=r"Finder is derived from .* derive it from shipline.train.LearningRateFinder"
    ):
        ours.Trainer(callbacks=[Finder()])
