"""What a training step returned: checked to be a loss, and a finite one."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch

from shipline.errors import TrainingError

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

_DONE = {"skip": "the batch is skipped", "stop": "the fit stops"}


class LossCheck:
    """Finds losses that are none, and does about those that are not finite what the Trainer is set to.

    On the CPU each loss is looked at when it comes. On an accelerator that would wait for the device at every step:
    unless batches are to be skipped, losses are kept there and looked at together.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._policy = trainer.nonfinite_loss
        self._at_once = trainer.device.type == "cpu" or self._policy == "skip"
        self._together = trainer.world_size > 1
        self._kept: list[tuple[torch.Tensor, str]] = []

    def loss_of(self, outputs: Any, batch_idx: int) -> torch.Tensor | None:
        """Return the loss in what a training step returned; None where the batch is to be skipped.

        Raises:
            TrainingError: it is no loss, or not finite; the message says in which step.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        none = loss is None and (outputs is None or "loss" in outputs)
        if self._together:
            return self._loss_of_all(None if none else self._checked(outputs, loss, batch_idx), batch_idx)
        if none:
            return None
        return self._finite(self._checked(outputs, loss, batch_idx), batch_idx)

    def _loss_of_all(self, loss: torch.Tensor | None, batch_idx: int) -> torch.Tensor | None:
        """Skip a batch on all workers or on none: a worker that ran no backward pass would leave the others waiting."""
        if self._policy != "skip":
            if loss is None:
                raise TrainingError(self._none_here(batch_idx))
            return self._finite(loss, batch_idx)
        finite = loss is not None and math.isfinite(loss.item())
        if loss is not None and not finite:
            self._not_finite(loss.item(), self._where(batch_idx))
        here = torch.tensor(float(finite), device=self._trainer.device)
        return loss if self._trainer.strategy.reduce(here, reduce_op="min").item() else None

    def _checked(self, outputs: Any, loss: Any, batch_idx: int) -> torch.Tensor:
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise TrainingError(self._wrong(outputs, loss, batch_idx))
        return loss

    def _finite(self, loss: torch.Tensor, batch_idx: int) -> torch.Tensor | None:
        if self._policy == "ignore":
            return loss
        if not self._at_once:
            self._kept.append((loss.detach(), self._where(batch_idx)))
            return loss
        if math.isfinite(value := loss.item()):
            return loss
        self._not_finite(value, self._where(batch_idx))
        return None

    def look(self) -> None:
        """Look at the losses that were kept; before what comes of them is written down, or too many are kept.

        Raises:
            TrainingError: one was not finite.
        """
        if not self._kept:
            return
        kept, self._kept = self._kept, []
        values = torch.stack([loss.reshape(()).float() for loss, _ in kept]).tolist()
        for value, (_, where) in zip(values, kept, strict=True):
            if not math.isfinite(value):
                self._not_finite(value, where)
                return

    def _not_finite(self, value: float, where: str) -> None:
        found = f"The loss is {value} ({where})"
        if self._policy == "raise":
            raise TrainingError(
                f"{found}: lower the learning rate, clip gradients, look at the batch, or set "
                "Trainer(nonfinite_loss='skip')."
            )
        logger.warning("%s: %s.", found, _DONE[self._policy])
        self._trainer.should_stop |= self._policy == "stop"

    def _where(self, batch_idx: int) -> str:
        trainer = self._trainer
        return f"epoch {trainer.current_epoch}, batch {batch_idx}, step {trainer.global_step}"

    def _none_here(self, batch_idx: int) -> str:
        return (
            f"training_step returned None on worker {self._trainer.global_rank} of {self._trainer.world_size} "
            f"({self._where(batch_idx)}), and the others would wait for its gradients: return a loss on each, or set "
            "Trainer(nonfinite_loss='skip'), which skips the batch on all workers."
        )

    def _wrong(self, outputs: Any, loss: Any, batch_idx: int) -> str:
        where = self._where(batch_idx)
        if not isinstance(loss, torch.Tensor):
            found = f"a dict with {', '.join(map(str, outputs)) or 'nothing'}" if loss is None else type(loss).__name__
            return (
                f"training_step returned {found} ({where}): return the loss as a tensor, a dict with 'loss', or None "
                "to skip the batch."
            )
        if loss.numel() != 1:
            return (
                f"training_step returned a loss of shape {list(loss.shape)} ({where}): reduce it to one number, with "
                ".mean() for example."
            )
        return (
            f"training_step returned a loss without gradients ({where}): compute it from the module's parameters, "
            "without .detach(), .item() or torch.no_grad()."
        )
