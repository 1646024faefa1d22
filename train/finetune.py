"""Training a module on, for an export that has changed it: short, with nothing written, the same each time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from shipline.train.callbacks import Callback
from shipline.train.seed import isolate_rng
from shipline.train.trainer import Trainer

if TYPE_CHECKING:
    from shipline.train.data import DataModule


def finetune(module: Any, data: DataModule, epochs: int, monitor: str | None = None, mode: str | None = None) -> None:
    """Train the module in place with its own optimizers; it ends in evaluation mode, with the weights that were best.

    Args:
        module: a Module or a LightningModule.
        data: to train and validate on.
        epochs: passes over the training data.
        monitor: the metric by which an epoch is the best; default: the last epoch is.
        mode: "min" or "max" of it is best.
    """
    callbacks = [] if monitor is None else [_Best(monitor, 1 if mode == "max" else -1)]
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    module.train()  # a Trainer leaves modes as they are
    with isolate_rng(seed=0):
        trainer.fit(module, datamodule=data)
    module.eval()


class _Best(Callback):
    """Keeps the weights of the best epoch in memory."""

    def __init__(self, monitor: str, sign: int) -> None:
        self._monitor, self._sign, self._score = monitor, sign, -math.inf
        self._weights: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        """Keep them, where they are better."""
        score = self._sign * float(trainer.callback_metrics.get(self._monitor, math.nan))
        if score > self._score:
            self._score = score
            self._weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def on_fit_end(self, trainer: Trainer, module: Any) -> None:
        """Take them; a metric that nobody logged leaves the last."""
        if self._weights:
            module.load_state_dict(self._weights)
