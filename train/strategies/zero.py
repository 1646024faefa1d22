"""Workers with a copy of the module each and a part of the optimizer's state: PyTorch's ZeroRedundancyOptimizer."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from torch.optim import Optimizer

from shipline.errors import ConfigError
from shipline.train.strategies.ddp import Ddp

with warnings.catch_warnings():  # torch uses there what it has deprecated itself
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import ZeroRedundancyOptimizer


class Zero1(Ddp):
    """As `ddp`; each worker steps a part of the weights, and keeps the optimizer's state of that part only.

    Rajbhandari et al., ZeRO, stage 1: https://arxiv.org/abs/1910.02054
    """

    def setup_optimizers(self, optimizers: list[Optimizer], schedulers: list[Any]) -> list[Optimizer]:
        """Let each optimizer step this worker's part, and the learning rate schedulers speak to all of it."""
        shared = {id(optimizer): _shared(optimizer) for optimizer in optimizers}
        for scheduler in schedulers:
            _speak_to(scheduler, shared)
        return list(shared.values())

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Return the state of all parts, on the first worker; it is that of the optimizer itself."""
        optimizer.consolidate_state_dict(to=0)
        return optimizer.state_dict() if self.rank == 0 else {}


class _Shared(ZeroRedundancyOptimizer):
    """Counts its steps as learning rate schedulers expect it of an optimizer that they were made with."""

    def step(self, closure: Any = None, **options: Any) -> Any:
        self._opt_called = True
        return super().step(closure, **options)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined] # noqa: SLF001 -- or they warn of a step replaced


def _shared(optimizer: Optimizer) -> Optimizer:
    kind = type(optimizer)
    # Some defaults, such as AdamW's decoupled_weight_decay, are no arguments.
    arguments = inspect.signature(kind).parameters
    defaults = {name: value for name, value in optimizer.defaults.items() if name in arguments}
    try:
        return _Shared(optimizer.param_groups, optimizer_class=kind, **defaults)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"The strategy zero1 cannot share out {kind.__name__}: {error}. It makes one for each worker "
            "from its defaults; take an optimizer of torch.optim, or the strategy fsdp."
        ) from error


def _speak_to(scheduler: Any, shared: dict[int, Optimizer]) -> None:
    """Give a scheduler, and those that it is made of, the optimizer that now stands for its own."""
    scheduler.optimizer = shared.get(id(scheduler.optimizer), scheduler.optimizer)
    for inner in getattr(scheduler, "_schedulers", ()):
        _speak_to(inner, shared)
