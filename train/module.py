"""The Module: a torch module that knows how it is trained, validated and rebuilt."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from shipline.errors import ConfigError, TrainingError, nearest
from shipline.train.hooks import ModuleHooks
from shipline.train.metrics import Reduction

if TYPE_CHECKING:
    from shipline.signature import Signature
    from shipline.train.trainer import Trainer


#: Lightning calls these; the Trainer does not yet, and to leave them out silently would train something else.
NOT_CALLED = (
    "backward", "configure_callbacks", "configure_gradient_clipping", "configure_model", "lr_scheduler_step",
    "on_after_batch_transfer", "on_before_batch_transfer", "on_load_checkpoint", "on_save_checkpoint",
    "optimizer_step", "optimizer_zero_grad", "transfer_batch_to_device",
)  # fmt: skip


class Arguments(dict[str, Any]):
    """Arguments by name, which can also be read as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"The module has no argument {name!r}.{nearest(name, self)}")


class Module(nn.Module, ModuleHooks):
    """A torch module with its training, validation and optimizers; names and meanings are PyTorch Lightning's.

    The constructor's arguments are kept as they are given (`hparams`), so that a checkpoint can rebuild the module.
    """

    #: Names, dtypes and shapes of what `forward` takes and gives; where None, export reads them off real rows.
    signature: Signature | None = None

    _arguments: dict[str, Any]
    _trainer_ref: weakref.ref[Trainer] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the constructor's arguments; wrong ones are the constructor's own error."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except TypeError:
            arguments: dict[str, Any] = {}
        else:
            bound.apply_defaults()
            arguments = _flat(bound)
        self.__dict__["_arguments"] = arguments
        self.__dict__["_trainer_ref"] = None
        return self

    @property
    def hparams(self) -> Arguments:
        """The constructor's arguments by name: `hparams["lr"]` or `hparams.lr`."""
        return Arguments(self._arguments)

    def save_hyperparameters(self, *names: str, ignore: str | list[str] | None = None) -> None:
        """Keep only these constructor arguments, or all but those ignored. Without a call all are kept."""
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        kept = {name: value for name, value in self._arguments.items() if not names or name in names}
        self.__dict__["_arguments"] = {name: value for name, value in kept.items() if name not in ignored}

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs this module; TrainingError outside of a run."""
        trainer = self._trainer_ref() if self._trainer_ref is not None else None
        if trainer is None:
            raise TrainingError(
                f"{type(self).__name__} is not attached to a Trainer: call trainer.fit(module, data) first."
            )
        return trainer

    def attach(self, trainer: Trainer | None) -> None:
        """Make `trainer` the one that runs this module."""
        self.__dict__["_trainer_ref"] = None if trainer is None else weakref.ref(trainer)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer_ref": None}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        first = next(self.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def current_epoch(self) -> int:
        """The number of finished epochs, 0 outside of a run."""
        return self.trainer.current_epoch if self._trainer_ref is not None else 0

    @property
    def global_step(self) -> int:
        """The number of optimizer steps so far, 0 outside of a run."""
        return self.trainer.global_step if self._trainer_ref is not None else 0

    def log(
        self,
        name: str,
        value: torch.Tensor | float,
        *,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Reduction = "mean",
        batch_size: int | None = None,
    ) -> None:
        """Record a number. In training steps it is kept per step, elsewhere reduced over the epoch and all workers.

        Args:
            name: of the metric.
            value: one number.
            prog_bar: show it in the progress bar.
            logger: give it to the loggers.
            on_step: keep every `log_every_n_steps`-th value; default: in training steps only.
            on_epoch: reduce over the epoch; default: everywhere but in training steps. What is logged both ways has two
                names, such as `loss_step` and `loss_epoch`.
            reduce_fx: "mean" (weighted by rows), "sum", "min" or "max".
            batch_size: rows behind the value; default: read off the batch.
        """
        if self._trainer_ref is None:
            return
        self.trainer.metrics.log(
            name, value, prog_bar=prog_bar, logger=logger, on_step=on_step, on_epoch=on_epoch,
            reduce_fx=reduce_fx, batch_size=batch_size,
        )  # fmt: skip

    def log_dict(self, dictionary: Mapping[str, torch.Tensor | float], **options: Any) -> None:
        """Record several numbers, with the options of `log`."""
        for name, value in dictionary.items():
            self.log(name, value, **options)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss of a batch: a tensor, a dict with "loss", or None to skip the batch."""
        raise ConfigError(f"{type(self).__name__} has no training_step: define training_step(self, batch, batch_idx).")

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Log what validation measures. Export runs it through the exported graph, so let it call `self(...)`."""

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Log what the test measures; default: what validation does."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the predictions of a batch; default: `self(batch)`."""
        return self(batch)

    def configure_optimizers(self) -> Any:
        """Return an optimizer, or one with learning rate schedulers, in any of the forms that Lightning takes."""
        raise ConfigError(f"{type(self).__name__} has no configure_optimizers: return an optimizer from it.")

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str, **overrides: Any) -> Self:
        """Return a module of this class with the checkpoint's weights.

        Args:
            checkpoint_path: URL of a checkpoint.
            overrides: constructor arguments that replace those in the checkpoint.

        Raises:
            ConfigError: it was trained with arguments that no checkpoint can keep; give them again.
            IntegrityError: the checkpoint is damaged, or is not of this class.
        """
        from shipline.checkpoint import open_checkpoint
        from shipline.train.checkpointing import load_weights

        checkpoint = open_checkpoint(checkpoint_path)
        lost = [name for name in checkpoint.manifest.not_rebuildable if name not in overrides]
        if lost:  # a default must not silently take its place
            raise ConfigError(
                f"{cls.__name__} cannot be rebuilt from {checkpoint}: {', '.join(lost)} could not be kept, for only "
                f"plain data is. Give it again: load_from_checkpoint(..., {lost[0]}=...)."
            )
        module = cls(**{**checkpoint.manifest.hyper_parameters, **overrides})
        load_weights(module, checkpoint)
        return module


def check_module(model: Any) -> None:
    """Refuse what the Trainer cannot run as it is meant.

    Raises:
        ConfigError: it is no Module; or it has hooks, or manual optimization, that the Trainer does not know.
    """
    if not isinstance(model, Module):
        raise ConfigError(
            f"A Trainer needs a shipline.Module; got {type(model).__name__}. Derive your class from shipline.Module, "
            "whose names are those of a LightningModule."
        )
    name = type(model).__name__
    if not getattr(model, "automatic_optimization", True):
        raise ConfigError(f"{name} sets automatic_optimization=False; the Trainer cannot leave the steps to it yet.")
    if unknown := [hook for hook in NOT_CALLED if hasattr(model, hook)]:
        raise ConfigError(f"{name} defines {', '.join(unknown)}, which the Trainer does not call yet. Remove it.")


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments by name, without self, with **kwargs spread out."""
    arguments: dict[str, Any] = {}
    for position, (name, value) in enumerate(bound.arguments.items()):
        kind = bound.signature.parameters[name].kind
        if position == 0 or kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        else:
            arguments[name] = value
    return arguments
