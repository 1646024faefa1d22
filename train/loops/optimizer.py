"""An optimizer as a training step and `optimizer_step` see it: its step is counted, clipped, scaled, and has hooks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer


class LoopOptimizer:
    """Stands for an optimizer (Lightning's LightningOptimizer): everything but `step` is the optimizer's own.

    Args:
        optimizer: the one that it stands for.
        trainer: that runs it.
        look: called before each step, when the gradients are there and not scaled.
        count: called after each step; None where the loop counts.
    """

    def __init__(
        self, optimizer: Optimizer, trainer: Trainer, look: Callable[[], Any], count: Callable[[], None] | None = None
    ) -> None:
        self.__dict__.update(optimizer=optimizer, _trainer=trainer, _look=look, _count=count)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What `isinstance` goes by: the class of the optimizer."""
        return type(self.optimizer)

    def step(self, closure: Callable[[], Any] | None = None, **_options: Any) -> Any:
        """Step, after `closure` has computed the gradients, if it is given."""
        step = self._trainer.uncompiled(self._trainer.precision_plugin.optimizer_step)
        if self._count is None:
            return step(self.optimizer, closure or _nothing, self._look)
        result = self._trainer.hooks.profiled("optimizer_step", step)(self.optimizer, closure or _nothing, self._look)
        self._count()
        return result

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Within it, gradients flow to this optimizer's parameters only, and between workers if `sync_grad`."""
        module = self._trainer.module
        module.toggle_optimizer(self.optimizer)
        try:
            with nullcontext() if sync_grad else self._no_sync():
                yield
        finally:
            module.untoggle_optimizer(self.optimizer)

    def _no_sync(self) -> AbstractContextManager[Any]:
        between: AbstractContextManager[Any] = self._trainer.strategy.no_sync(self._trainer.step)
        return between

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.optimizer, name, value)

    def __repr__(self) -> str:
        return repr(self.optimizer)


def _nothing() -> None:
    return None


def unwrapped(optimizer: Any) -> Optimizer:
    """Return the optimizer itself."""
    return optimizer.optimizer if type(optimizer) is LoopOptimizer else optimizer  # type: ignore[no-any-return]
