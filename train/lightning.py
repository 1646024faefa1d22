"""Real Lightning objects in our Trainer: modules, DataModules, callbacks and loggers, as they are.

Nothing here imports Lightning: who has such an object has imported it. Both of its packages will do
(`pytorch_lightning`, `lightning.pytorch`). A module stays the very object that it is; while a stage runs, the few of
its methods that reach into Lightning's own Trainer are covered by ours.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from shipline.errors import ConfigError
from shipline.train.callbacks import Callback, ModelCheckpoint, ModelSummary
from shipline.train.callbacks.adopt import adopted
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
    """Make `trainer` the one that runs this module."""
    if isinstance(module, Module):
        module.attach(trainer)
        return
    module.trainer = trainer
    for name, method in _COVERED.items():
        if getattr(type(module), name, None) is getattr(foundation(type(module)), name, None):
            module.__dict__[name] = types.MethodType(method, module)


def detach(module: Any) -> None:
    """Uncover a LightningModule's own methods; what hooks read off its `trainer` stays there."""
    if not isinstance(module, Module):
        for name, method in _COVERED.items():
            if getattr(module.__dict__.get(name), "__func__", None) is method:
                del module.__dict__[name]


def as_callback(item: Any) -> Callback:
    """Return the callback. Lightning's own that do what ours do by other means become ours; others run as they are.

    Raises:
        ConfigError: it is no callback.
    """
    if isinstance(item, Callback):
        return item
    if not is_foreign(item, "Callback"):
        raise ConfigError(f"callbacks has a {type(item).__name__}, which is no shipline.train.Callback.")
    name = type(item).__name__ if type(item).__module__.partition(".")[0] in _PACKAGES else None
    if name == "ModelCheckpoint":
        return _model_checkpoint(item)
    if name in ("ModelSummary", "RichModelSummary"):
        return ModelSummary(max_depth=item._max_depth)  # noqa: SLF001 -- it has no public name
    ours = None if name is None else adopted(name, item)
    return item if ours is None else ours


def _model_checkpoint(item: Any) -> ModelCheckpoint:
    interval = item._train_time_interval  # noqa: SLF001 -- it has no public name
    return ModelCheckpoint(
        dirpath=item.dirpath,
        filename=item.filename,
        monitor=item.monitor,
        verbose=item.verbose,
        save_last=item.save_last,
        save_top_k=item.save_top_k,
        save_weights_only=item.save_weights_only,
        mode=item.mode,
        auto_insert_metric_name=item.auto_insert_metric_name,
        every_n_train_steps=item._every_n_train_steps or None,  # noqa: SLF001
        train_time_interval=interval,
        every_n_epochs=item._every_n_epochs or None,  # noqa: SLF001
        save_on_train_epoch_end=item._save_on_train_epoch_end,  # noqa: SLF001
        enable_version_counter=item._enable_version_counter,  # noqa: SLF001
    )


def as_logger(item: Any) -> Logger:
    """Return the logger, Lightning's own in a cover.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(item, Logger):
        return item
    if is_foreign(item, "Logger"):
        return ForeignLogger(item)
    raise ConfigError(f"logger has a {type(item).__name__}, which is no shipline.train.Logger.")


class ForeignLogger(Logger):
    """One of Lightning's loggers; it writes where it was told to."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Pass the arguments on."""
        self.logger.log_hyperparams(params)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Pass the metrics on."""
        self.logger.log_metrics(metrics, step)

    def save(self) -> None:
        """Let it write."""
        self.logger.save()

    def finalize(self, status: str) -> None:
        """Let it end."""
        self.logger.finalize(status)

    @property
    def experiment(self) -> Any:
        """What the logger writes with."""
        return self.logger.experiment

    def __getattr__(self, name: str) -> Any:
        if name == "logger":  # before there is one, while it is unpickled
            raise AttributeError(name)
        return getattr(self.logger, name)
