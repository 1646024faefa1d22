"""Real Lightning objects in our Trainer: modules, DataModules, callbacks and loggers, as they are.

Nothing here imports Lightning: who has such an object has imported it. Both of its packages will do
(`pytorch_lightning`, `lightning.pytorch`). A module stays the very object that it is; the few methods of a
LightningModule that reach into Lightning's own Trainer reach ours where ours runs it.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

from shipline.errors import ConfigError
from shipline.train.callbacks import Callback
from shipline.train.hooks import foundation, is_foreign
from shipline.train.loggers import Logger
from shipline.train.loops.optimization import OptimizationHooks
from shipline.train.module import Module

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer

_PACKAGES = ("pytorch_lightning", "lightning")
_COVERED: dict[str, Any] = {
    "log": Module.log,
    "log_dict": Module.log_dict,
    "optimizers": OptimizationHooks.optimizers,
    "lr_schedulers": OptimizationHooks.lr_schedulers,
    "manual_backward": OptimizationHooks.manual_backward,
    "clip_gradients": OptimizationHooks.clip_gradients,
    "toggle_optimizer": OptimizationHooks.toggle_optimizer,
    "untoggle_optimizer": OptimizationHooks.untoggle_optimizer,
    "toggled_optimizer": OptimizationHooks.toggled_optimizer,
    "all_gather": Module.all_gather,
    "print": Module.print,
}


def as_module(model: Any) -> Any:
    """Return the module that is to be trained: ours, a LightningModule, or what `torch.compile` made of one.

    Raises:
        ConfigError: it is none.
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, Module) and not is_foreign(model, "LightningModule"):
        raise ConfigError(
            f"A Trainer needs a shipline.Module or a LightningModule; got {type(model).__name__}. Derive your class "
            "from shipline.Module, whose names are those of a LightningModule."
        )
    return model


def attach(module: Any, trainer: Trainer) -> None:
    """Make `trainer` the one that runs this module, and the modules in it."""
    for part in module.modules():
        if isinstance(part, Module):
            part.attach(trainer)
        elif is_foreign(part, "LightningModule"):
            _cover(foundation(type(part)))
            part.trainer = trainer


def _cover(base: Any) -> None:
    """Let a LightningModule that our Trainer runs reach it where its methods would reach into Lightning's.

    The class itself is covered, so that `super().log(...)` finds ours, too; what Lightning's Trainer runs is as before.
    """
    for name, ours in _COVERED.items():
        theirs = getattr(base, name, None)
        if theirs is not None and not hasattr(theirs, "ours"):
            setattr(base, name, _chosen(ours, theirs))


def _chosen(ours: Any, theirs: Any) -> Any:
    @functools.wraps(theirs)
    def method(self: Any, *arguments: Any, **named: Any) -> Any:
        from shipline.train.trainer import Trainer

        chosen = ours if isinstance(getattr(self, "_trainer", None), Trainer) else theirs
        return chosen(self, *arguments, **named)

    method.ours = ours  # type: ignore[attr-defined]
    return method


def as_callback(item: Any) -> Callback:
    """Return the callback. Lightning's own that do what ours do by other means become ours; others run as they are.

    Raises:
        ConfigError: it is no callback.
    """
    if isinstance(item, Callback):
        return item
    if not is_foreign(item, "Callback"):
        raise ConfigError(f"callbacks has a {type(item).__name__}, which is no shipline.train.Callback.")
    from shipline.train.callbacks.adopt import adopted  # which takes every callback there is

    ours = adopted(item, _PACKAGES)
    return item if ours is None else ours


def tell(callbacks: list[Callback]) -> None:
    """Let the objects of Lightning's that callbacks stand for have what was found, where their owner looks for it."""
    stand_ins = [c for c in callbacks if getattr(c, "stands_for", None) is not None]  # one that runs as it is has none
    if stand_ins:
        from shipline.train.callbacks.adopt import RESULTS

        for ours in stand_ins:
            for name in RESULTS.get(type(ours.stands_for).__name__, ()):
                setattr(ours.stands_for, name, getattr(ours, name))


def as_logger(item: Any) -> Logger:
    """Return the logger, Lightning's own in a cover.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(item, Logger):
        return item
    if is_foreign(item, "Logger"):
        if getattr(item, "_log_model", False):
            raise ConfigError(
                f"{type(item).__name__} has log_model={item._log_model!r}: checkpoints here are directories on any "  # noqa: SLF001
                "store, which it cannot upload. Leave it out, or log an artifact in a callback."
            )
        return ForeignLogger(item)
    raise ConfigError(f"logger has a {type(item).__name__}, which is no shipline.train.Logger.")


class ForeignLogger(Logger):
    """One of Lightning's loggers; it writes where it was told to, and begins anew where a run is resumed."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._lock = threading.RLock()  # they are made for one thread, and `save` comes in that of the checkpoints

    def __reduce__(self) -> Any:
        return ForeignLogger, (self.logger,)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """That of the logger: modules ask `isinstance(self.logger, WandbLogger)` before they use what only that has."""
        return type(self.logger)

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Pass the arguments on."""
        with self._lock:
            self.logger.log_hyperparams(params)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Pass the module on."""
        with self._lock:
            self.logger.log_graph(model, input_array)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass the metrics on; in a copy, for they are the logger's to change."""
        with self._lock:
            self.logger.log_metrics(dict(metrics), step)

    def save(self) -> None:
        """Let it write."""
        with self._lock:
            self.logger.save()

    def finalize(self, status: str) -> None:
        """Let it end."""
        with self._lock:
            self.logger.finalize(status)

    @property
    def experiment(self) -> Any:
        """What the logger writes with."""
        return self.logger.experiment

    @property
    def name(self) -> str | None:
        """The logger's name."""
        return self.logger.name  # type: ignore[no-any-return]

    @property
    def version(self) -> str | int | None:
        """The logger's version."""
        return self.logger.version  # type: ignore[no-any-return]

    @property
    def log_dir(self) -> str | None:
        """The logger's directory; None where it has no such thing."""
        return getattr(self.logger, "log_dir", None)

    @property
    def save_dir(self) -> str | None:
        """The directory that the logger was given."""
        return self.logger.save_dir  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.logger, name)


class FitLoop:
    """What packages look up in Lightning's loops: `trainer.fit_loop`, its `epoch_loop`, and that one's `val_loop`."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    @property
    def epoch_loop(self) -> FitLoop:
        """This object: it stands for all of them."""
        return self

    val_loop = _data_source = epoch_loop

    def is_defined(self) -> bool:
        """Whether there is something to validate on."""
        return self._trainer.fit_data.has_validation

    @property
    def max_epochs(self) -> int | None:
        """Epochs after which to stop."""
        return self._trainer.max_epochs

    @property
    def max_steps(self) -> int:
        """Optimizer steps after which to stop."""
        return self._trainer.max_steps

    @property
    def max_batches(self) -> float:
        """How many batches an epoch has."""
        return self._trainer.num_training_batches

    @property
    def global_step(self) -> int:
        """How many steps the optimizers have made."""
        return self._trainer.global_step

    @property
    def batch_idx(self) -> int:
        """The number of the batch in its epoch."""
        progress = self._trainer.progress
        return progress.batches - (progress.phase != "ready")

    @property
    def total_batch_idx(self) -> int:
        """The number of the batch over all epochs."""
        progress = self._trainer.progress
        return progress.all_batches - (progress.phase != "ready")

    @property
    def _batches_that_stepped(self) -> int:
        return self._trainer.progress.stepped_batches

    @property
    def should_update_logs(self) -> bool:
        """Whether loggers get what this step logs."""
        return self._trainer.logs_this_step()
