"""The points of a run at which modules and callbacks may act; names and order are PyTorch Lightning's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from shipline.train.callbacks.base import Callback
    from shipline.train.module import Module
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
        """Called before the optimizer's step: the place to look at gradients."""

    def on_validation_start(self) -> None:
        """Called before validation."""

    def on_validation_end(self) -> None:
        """Called after validation."""

    def on_validation_epoch_start(self) -> None:
        """Called before validation's pass over the data."""

    def on_validation_epoch_end(self) -> None:
        """Called after validation's pass over the data."""

    def on_test_start(self) -> None:
        """Called before the test."""

    def on_test_end(self) -> None:
        """Called after the test."""

    def on_test_epoch_start(self) -> None:
        """Called before the test's pass over the data."""

    def on_test_epoch_end(self) -> None:
        """Called after the test's pass over the data."""


class Hooks:
    """Calls a hook on every callback, in order, and then on the module; only where somebody overrides it.

    At the end of an epoch, callbacks that monitor finished metrics come after the module, by a call of their own.
    """

    def __init__(self, trainer: Trainer, module: Module, callbacks: Sequence[Callback]) -> None:
        self._owner = (trainer, module)
        self._callbacks = callbacks
        self._found: dict[str, list[Hook]] = {}

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call the hook `name`."""
        for hook in self.of(name):
            hook(*arguments)

    def monitors(self, name: str) -> None:
        """Call the hook `name` of the callbacks that monitor."""
        for hook in self._of_callbacks(name, [c for c in self._callbacks if c.monitors]):
            hook()

    def of(self, name: str) -> list[Hook]:
        """Return the functions behind the hook `name`: what a hot loop calls directly."""
        if name not in self._found:
            module = self._owner[1]
            later = name == "on_train_epoch_end"
            hooks = self._of_callbacks(name, [c for c in self._callbacks if not (later and c.monitors)])
            if hasattr(ModuleHooks, name) and _overrides(module, ModuleHooks, name):
                hooks.append(getattr(module, name))
            self._found[name] = hooks
        return self._found[name]

    def _of_callbacks(self, name: str, callbacks: Sequence[Callback]) -> list[Hook]:
        from shipline.train.callbacks.base import Callback

        return [partial(getattr(c, name), *self._owner) for c in callbacks if _overrides(c, Callback, name)]


def _overrides(item: object, base: type, name: str) -> bool:
    return getattr(type(item), name, None) is not getattr(base, name, None)
