"""How many batches make an optimizer step, by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shipline.errors import ConfigError
from shipline.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer


class GradientAccumulationScheduler(Callback):
    """Changes `accumulate_grad_batches` as epochs go by.

    Args:
        scheduling: the number of batches that make a step, by the epoch from which it holds, counted from 0. Before the
            first of them it is 1.
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        if not scheduling:
            raise ConfigError("GradientAccumulationScheduler has an empty scheduling: set {epoch: batches}.")
        for epoch, batches in scheduling.items():
            if not _is_whole(epoch, 0) or not _is_whole(batches, 1):
                raise ConfigError(
                    f"GradientAccumulationScheduler has scheduling={{{epoch!r}: {batches!r}}}; set an epoch from 0 on, "
                    "and a number of batches from 1 on."
                )
        self.scheduling = {0: 1} | scheduling
        self.epochs = sorted(self.scheduling)
        self._decides = False

    def going_to_accumulate_grad_batches(self) -> bool:
        """Whether there is an epoch in which a step takes several batches."""
        return any(batches > 1 for batches in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Return how many batches make a step in that epoch."""
        return self.scheduling[max(begin for begin in self.epochs if begin <= epoch)]

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """See that nobody else decides.

        Raises:
            ConfigError: the Trainer has accumulate_grad_batches too, or the module steps its optimizers itself.
        """
        if stage != "fit":
            return
        if not module.automatic_optimization:
            raise ConfigError(
                f"{type(module).__name__} steps its optimizers itself, so GradientAccumulationScheduler means nothing: "
                "leave it out, and accumulate in training_step."
            )
        if trainer.accumulate_grad_batches != 1:
            raise ConfigError(
                f"Trainer has accumulate_grad_batches={trainer.accumulate_grad_batches}, and a "
                "GradientAccumulationScheduler: leave one of them out."
            )

        self._decides = True

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Set it for the epoch in which a resumed run goes on."""
        self._set(trainer)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Set it for the epoch that begins."""
        self._set(trainer)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Leave the Trainer as it was."""
        if self._decides:
            trainer.accumulate_grad_batches, self._decides = 1, False

    def _set(self, trainer: Trainer) -> None:
        trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(trainer.current_epoch)


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
