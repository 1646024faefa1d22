"""The points of a run at which modules and callbacks may act; names and order are PyTorch Lightning's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from shipline.train.accelerators.devices import to_device

if TYPE_CHECKING:
    import torch

    from shipline.train.callbacks.callback import Callback
    from shipline.train.data import DataModule
    from shipline.train.module import Module
    from shipline.train.precision import Precision
    from shipline.train.profilers import Profiler
    from shipline.train.trainer import Trainer

Hook = Callable[..., Any]


class ModuleHooks:
    """What a Module may override; all do nothing."""

    def on_fit_start(self) -> None:
        """Called before anything of the fit."""

    def on_fit_end(self) -> None:
        """Called after everything of the fit."""

    def on_train_start(self) -> None:
        """Called before the first epoch."""

    def on_train_end(self) -> None:
        """Called after the last epoch."""

    def on_train_epoch_start(self) -> None:
        """Called before each epoch."""

    def on_train_epoch_end(self) -> None:
        """Called after each epoch, its validation included."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Called before each training step; return -1 to skip the rest of the epoch."""

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Called after each training step."""

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after the training step, before gradients are cleared."""

    def on_before_backward(self, loss: torch.Tensor) -> None:
        """Called before the backward pass."""

    def on_after_backward(self) -> None:
        """Called after the backward pass."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before the optimizer's step and before clipping: the place to look at gradients."""

    if TYPE_CHECKING:  # of the Module that this is mixed into

        def eval(self) -> Self: ...

        def zero_grad(self, set_to_none: bool = True) -> None: ...

    def on_validation_model_zero_grad(self) -> None:
        """Clear the gradients before a fit's validation, so that they take no memory."""
        self.zero_grad()

    def on_validation_model_eval(self) -> None:
        """Set evaluation mode."""
        self.eval()

    def on_validation_model_train(self) -> None:
        """Called to set training mode; unless overridden, every submodule is put back as it was."""

    def on_validation_start(self) -> None:
        """Called before validation."""

    def on_validation_end(self) -> None:
        """Called after validation."""

    def on_validation_epoch_start(self) -> None:
        """Called before validation's pass over the data."""

    def on_validation_epoch_end(self) -> None:
        """Called after validation's pass over the data."""

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before each validation step."""

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after each validation step."""

    def on_test_model_eval(self) -> None:
        """Set evaluation mode."""
        self.eval()

    def on_test_model_train(self) -> None:
        """Called to set training mode; unless overridden, every submodule is put back as it was."""

    def on_test_start(self) -> None:
        """Called before the test."""

    def on_test_end(self) -> None:
        """Called after the test."""

    def on_test_epoch_start(self) -> None:
        """Called before the test's pass over the data."""

    def on_test_epoch_end(self) -> None:
        """Called after the test's pass over the data."""

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before each test step."""

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after each test step."""

    def on_predict_model_eval(self) -> None:
        """Set evaluation mode."""
        self.eval()

    def on_predict_start(self) -> None:
        """Called before predicting."""

    def on_predict_end(self) -> None:
        """Called after predicting."""

    def on_predict_epoch_start(self) -> None:
        """Called before prediction's pass over the data."""

    def on_predict_epoch_end(self) -> None:
        """Called after prediction's pass over the data."""

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called before each prediction step."""

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Called after each prediction step."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called when a checkpoint is made; what is put into the dict is kept: tensors and plain data."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Called before the run is put back, with what `on_save_checkpoint` kept."""

    def setup(self, stage: str) -> None:
        """Called after the callbacks' setup: fit, validate, test or predict. Layers may still be made."""

    def teardown(self, stage: str) -> None:
        """Called last of a stage."""

    def prepare_data(self) -> None:
        """Called once per machine before all workers' setup."""

    def configure_model(self) -> None:
        """Called after setup, before the optimizers are made: the last moment to make layers. Called more than once."""

    def configure_callbacks(self) -> Any:
        """Return callbacks of the module's own; they replace the Trainer's of the same class."""
        return []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch as it is to be moved to the device."""
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch on the device."""
        return to_device(batch, device)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Return the batch as the steps take it."""
        return batch


class Hooks:
    """Calls a hook on every callback, in order, and then on the module; only where somebody overrides it.

    Some callbacks come later, by a call of their own: those that look at finished metrics at the end of an epoch, as in
    Lightning; and those that save, whenever they do, so that a checkpoint holds what everybody else has done.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: Module,
        callbacks: Sequence[Callback],
        data: DataModule,
        profiler: Profiler,
    ) -> None:
        self._owner = (trainer, module)
        self._data = data
        self._callbacks = callbacks
        self._profiler = profiler
        self._found: dict[str, list[Hook]] = {}

    def __call__(self, name: str, *arguments: Any) -> bool:
        """Call the hook `name`; return whether anybody has it."""
        found = self.of(name)
        for hook in found:
            hook(*arguments)
        return bool(found)

    def data(self, name: str, *arguments: Any) -> Any:
        """Call a hook of the DataModule; return what it returns."""
        hook = self.profiled(f"[DataModule]{type(self._data).__name__}.{name}", getattr(self._data, name))
        return hook(*arguments)

    def method(self, name: str) -> Hook:
        """Return a method of the module's that nobody but it has."""
        return self.profiled(f"[Module]{type(self._owner[1]).__name__}.{name}", getattr(self._owner[1], name))

    def of(self, name: str) -> list[Hook]:
        """Return the functions behind the hook `name`: what a hot loop calls directly."""
        if name not in self._found:
            module = self._owner[1]
            hooks = self._of_callbacks(name, [c for c in self._callbacks if not _is_late(c, name)])
            if hasattr(ModuleHooks, name) and overrides(module, name):
                hooks.append(self.method(name))
            self._found[name] = hooks
        return self._found[name]

    def late(self, name: str) -> list[Hook]:
        """Return the functions behind the hook `name` of the callbacks that come later."""
        key = f"{name}, late"
        if key not in self._found:
            self._found[key] = self._of_callbacks(name, [c for c in self._callbacks if _is_late(c, name)])
        return self._found[key]

    def overridden(self, name: str) -> bool:
        """Whether the module has a method `name` of its own."""
        return overrides(self._owner[1], name)

    def profiled(self, action: str, function: Hook) -> Hook:
        """Return the function, measured where there is a profiler."""
        return self._profiler.wrap(action, function)

    def transfer(self, data: Any) -> Callable[[Any, int], Any] | None:
        """Return the function that brings a batch to the device, None where there is nothing to do.

        A DataModule that overrides one of the three hooks comes before the module, as in Lightning.
        """
        trainer, module = self._owner
        names = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        data = getattr(data, "adopted", data)
        owners = [data if hasattr(data, name) and overrides(data, name) else module for name in names]
        device, convert = trainer.device, _conversion(trainer.precision_plugin)
        if all(o is module and not self.overridden(n) for o, n in zip(owners, names, strict=True)):
            if device.type == "cpu":
                return None if convert is None else lambda batch, _index: convert(batch)
            move_all = self.profiled("batch_to_device", to_device)
            return lambda batch, _index: move_all(batch if convert is None else convert(batch), device)
        before, move, after = (
            self.method(name) if owner is module
            else self.profiled(f"[DataModule]{type(owner).__name__}.{name}", getattr(owner, name))
            for owner, name in zip(owners, names, strict=True)
        )  # fmt: skip

        def transfer(batch: Any, index: int) -> Any:
            batch = batch if convert is None else convert(batch)
            return after(move(before(batch, index), device, index), index)

        return transfer

    def _of_callbacks(self, name: str, callbacks: Sequence[Callback]) -> list[Hook]:
        return [
            self.profiled(f"[Callback]{type(c).__name__}.{name}", partial(getattr(c, name), *self._owner))
            for c in callbacks
            if overrides(c, name)
        ]


def _is_late(callback: Any, name: str) -> bool:
    if name == "on_train_epoch_end":
        return monitors(callback)
    return name in ("on_train_batch_end", "on_validation_end") and getattr(callback, "saves", False)


def monitors(callback: Any) -> bool:
    """Whether the callback looks at finished metrics; of Lightning's own, those that stop and save do."""
    own = getattr(callback, "monitors", None)
    if own is not None:
        return bool(own)
    return any(cls.__name__ in ("Checkpoint", "EarlyStopping") for cls in type(callback).__mro__)


def is_foreign(item: object, kind: str) -> bool:
    """Whether the item is one of Lightning's `kind`: "LightningModule", "LightningDataModule", "Callback", "Logger"."""
    return is_foreign_class(type(item), kind)


def is_foreign_class(cls: type, kind: str) -> bool:
    """Whether the class derives from Lightning's `kind`."""
    return any(
        base.__name__ == kind
        and base.__module__.partition(".")[0] in ("pytorch_lightning", "lightning", "lightning_fabric")
        for base in cls.__mro__
    )


def overrides(item: object, name: str) -> bool:
    """Whether the module or callback has a hook `name` that does more than that of the class to derive from."""
    return name in vars(item) or getattr(type(item), name, None) is not getattr(foundation(type(item)), name, None)


def foundation(cls: type) -> type:
    """Return the class to derive from that a module's, DataModule's or callback's class derives from: of which kind."""
    for base in cls.__mro__:
        package = base.__module__.partition(".")[0]
        if base.__name__ in _FOUNDATIONS.get(package, ()):
            return base
    return object


_LIGHTNING = ("LightningModule", "LightningDataModule", "Callback")
_FOUNDATIONS = {
    "shipline": ("Module", "DataModule", "Callback"), "pytorch_lightning": _LIGHTNING, "lightning": _LIGHTNING,
}  # fmt: skip


def _conversion(precision: Precision) -> Callable[[Any], Any] | None:
    from shipline.train.precision import Precision

    return None if type(precision).convert_input is Precision.convert_input else precision.convert_input
