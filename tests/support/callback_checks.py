"""What every callback that changes training is put through, and a run by PyTorch Lightning to compare with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from training import Mlp, new_trainer, on_hook, train_loader, val_loader

import shipline as sl
from shipline.train import Callback, ModelCheckpoint

STEPS = 8  # in an epoch


class Backbone(Mlp):
    """Batch norm, dropout and a backbone; trains what requires gradients, on a schedule where asked to."""

    def __init__(self, dropout: float = 0.2, lr: float = 0.1, schedule: bool = False) -> None:
        super().__init__(hidden=16, dropout=dropout, lr=lr)
        self.schedule = schedule
        self.backbone = nn.Sequential(nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 64))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(self.backbone(image))

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=self.lr, momentum=0.9)
        if not self.schedule:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)]


def same_tree(one: Any, other: Any) -> bool:
    """Whether two trees of tensors and plain data are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tree(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_tree, one, other))
    return bool(np.array_equal(one, other)) and type(one) is type(other)


def fit(
    root: str | Path,
    module: sl.Module,
    *callbacks: Callback,
    seed: int = 0,
    epochs: int = 5,
    cut_at: int | None = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> sl.Trainer:
    """Train on shuffled digits, with a checkpoint after every third step; lose power before step `cut_at`."""
    sl.seed_everything(seed)
    keep = ModelCheckpoint(every_n_train_steps=3, monitor="val_loss")
    trainer = new_trainer(root, max_epochs=epochs, callbacks=[*callbacks, keep, _cut(cut_at)], logger=False, **options)
    trainer.fit(module, train_loader(16 * STEPS, 16), val_loader(32), ckpt_path=ckpt_path)
    return trainer


class PowerCutError(Exception):
    """The machine is gone."""


def _cut(step: int | None) -> Callback:
    def act(trainer: sl.Trainer, *_: Any) -> None:
        if trainer.global_step == step:
            raise PowerCutError

    return on_hook("on_train_batch_start", act)


def check_exact_resume(
    root: Path, make_module: Callable[[], sl.Module], make: Callable[[], Callback], cut_at: int, **options: Any
) -> None:
    """Killed in mid-epoch and resumed, by new objects and with other seeds, a run ends as one that was not killed."""
    torch.manual_seed(0)
    module, callback = make_module(), make()
    whole = fit(root / "whole", module, callback, **options)

    torch.manual_seed(0)
    with pytest.raises(PowerCutError):
        fit(root / "parts", make_module(), make(), cut_at=cut_at, **options)
    torch.manual_seed(99)
    resumed_module, resumed_callback = make_module(), make()
    resumed = fit(root / "parts", resumed_module, resumed_callback, seed=99, ckpt_path="last", **options)

    assert resumed.global_step == whole.global_step
    assert same_tree(resumed_module.state_dict(), module.state_dict())
    assert same_tree(_states(resumed), _states(whole))
    assert same_tree(resumed_callback.state_dict(), callback.state_dict())
    assert same_tree(resumed.callback_metrics, whole.callback_metrics)


def _states(trainer: sl.Trainer) -> list[Any]:
    return [item.state_dict() for item in (*trainer.optimizers, *(each.scheduler for each in trainer.schedules))]


# ---- PyTorch Lightning -----------------------------------------------------------------------------------------------


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning says nothing of the machine."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def by_both(
    make_module: Callable[[], Any], ours: Callback, theirs: Any, *, epochs: int = 4, **options: Any
) -> tuple[Any, Any]:
    """Train a LightningModule with our callback in our Trainer and with theirs in theirs; return both modules."""
    import pytorch_lightning

    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "max_epochs": epochs, **options}
    modules = []
    for make_trainer, callback in ((sl.Trainer, ours), (pytorch_lightning.Trainer, theirs)):
        torch.manual_seed(0)
        module = make_module()
        make: Any = make_trainer
        with quiet_lightning():
            make(callbacks=[callback], **quiet).fit(module, loader(), val_loader(32))
        modules.append(module)
    return modules[0], modules[1]


def loader() -> DataLoader[Any]:
    """Shuffled rows to train on, in epochs of STEPS batches."""
    return train_loader(16 * STEPS, 16)


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    """Between the weights of two modules."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
