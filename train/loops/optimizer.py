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
    """Stands for an optimizer (Lightning's LightningOptimizer): everything but `step` is the optimizer's own."""

    def __init__(self, optimizer: Optimizer, trainer: Trainer, count: Callable[[], None] | None) -> None:
        self.__dict__.update(optimizer=optimizer, _trainer=trainer, _count=count)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """What `isinstance` goes by: the class of the optimizer."""
        return type(self.optimizer)

    def step(self, closure: Callable[[], Any] | None = None, **_options: Any) -> Any:
        """Step, after `closure` has computed the gradients, if it is given."""
        trainer = self._trainer

        def look() -> None:
            trainer.hooks("on_before_optimizer_step", self.optimizer)

        after = look if self._count is not None else _nothing  # in automatic optimization the closure has done it
        result = trainer.precision_plugin.optimizer_step(self.optimizer, closure or _nothing, after)
        if self._count is not None:
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
