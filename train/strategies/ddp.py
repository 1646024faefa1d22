"""Workers with a copy of the module each, joined by PyTorch's DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _find_tensors

from shipline.errors import ConfigError, nearest
from shipline.train.strategies.base import Step, step_of
from shipline.train.strategies.group import Joined

if TYPE_CHECKING:
    from shipline.train.module import Module


class Ddp(Joined):
    """Workers of a process group that exists already, each with a copy of the module; gradients are averaged.

    Args:
        comm_hook: "fp16" or "bf16": gradients travel in half as many bytes, by PyTorch's own communication hooks.
            PowerSGD is not among them: what it leaves out of a step it adds to the next one, on each worker its own,
            which no checkpoint here would keep.
        options: of `torch.nn.parallel.DistributedDataParallel`, such as `find_unused_parameters=True`.

    Raises:
        ConfigError: there is no such hook.
    """

    def __init__(self, *, comm_hook: str | None = None, **options: Any) -> None:
        if comm_hook is not None and comm_hook not in _HOOKS:
            raise ConfigError(
                f"The strategy ddp has comm_hook={comm_hook!r}.{nearest(str(comm_hook), _HOOKS)} Known: "
                f"{', '.join(_HOOKS)}."
            )
        self._comm_hook, self._options = comm_hook, options

    def training_step(self, module: Module) -> Step:
        """Return the step inside DistributedDataParallel, which synchronises only what its own forward runs."""
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return step_of(module, "training_step")
        devices = None if module.device.type == "cpu" else [module.device.index]
        step = DistributedDataParallel(_TrainingStep(module), device_ids=devices, **self._options)
        _keep_order(step)
        if self._comm_hook is not None:
            step.register_comm_hook(None, _HOOKS[self._comm_hook])
        return step if module.automatic_optimization else _BackwardInside(step)

    def no_sync(self, step: Step) -> AbstractContextManager[Any]:
        """Let gradients wait for the last batch of an accumulation.

        Raises:
            ConfigError: with `static_graph`: PyTorch must exchange its first batch, and fails with an error of its own.
        """
        if self._options.get("static_graph"):
            raise ConfigError(
                "Ddp has static_graph=True, and the Trainer accumulates gradients over several batches, which PyTorch "
                "cannot do together: leave out static_graph, or accumulate_grad_batches."
            )
        inner = step.inner if isinstance(step, _BackwardInside) else step
        return inner.no_sync() if isinstance(inner, DistributedDataParallel) else super().no_sync(step)

    def before_manual_backward(self, step: Step, loss: torch.Tensor) -> None:
        """Prepare the exchange of gradients, which DistributedDataParallel would do only after the step."""
        if isinstance(step, _BackwardInside) and step.inner.require_backward_grad_sync:
            inner = step.inner
            inner.reducer._rebuild_buckets()  # noqa: SLF001 -- or the first backward pass meets buckets half made
            used = list(_find_tensors(loss)) if inner.find_unused_parameters else []  # type: ignore[no-untyped-call]
            inner.reducer.prepare_for_backward(used)

    def average_gradients(self, module: Module) -> None:
        """Exchange gradients that were accumulated within `no_sync`."""
        for parameter in module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.world_size


_HOOKS: dict[str, Callable[..., Any]] = {
    "fp16": fp16_compress_hook,
    # PyTorch lets a hook of that name pass with NCCL alone; gloo adds such numbers, too.
    "bf16": lambda group, bucket: bf16_compress_hook(group, bucket),  # noqa: PLW0108
}


class DdpFindUnusedParameters(Ddp):
    """For modules whose steps do not use all parameters each time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"find_unused_parameters": True} | options)


def _keep_order(step: DistributedDataParallel) -> None:
    """Let gradients be exchanged in one order from the first step on, that in which they mostly come.

    PyTorch sorts them anew after the first step. What several workers add would then be rounded otherwise in a run's
    first step than in its later ones, and a run that is resumed would not be the one that was not.
    """
    step.reducer._push_all_rebuilt_params()  # noqa: SLF001 -- there is no public way
    step.reducer._rebuild_buckets()  # noqa: SLF001


class _BackwardInside:
    """A training step that runs its own backward passes: what DistributedDataParallel does after it is left out."""

    def __init__(self, step: DistributedDataParallel) -> None:
        self.inner = step
        step.module.after = self._leave_out

    def __call__(self, batch: Any, batch_idx: int) -> Any:
        try:
            return self.inner(batch, batch_idx)
        finally:
            # The next step begins like any other: it exchanges gradients, and buffers before it.
            self.inner.require_backward_grad_sync = self.inner.require_forward_param_sync = True

    def _leave_out(self) -> None:
        self.inner.require_backward_grad_sync = False


class _TrainingStep(nn.Module):
    """Makes a training step a forward pass: what DistributedDataParallel watches."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module
        self.step = step_of(module, "training_step")
        self.after: Callable[[], None] | None = None

    def named_modules(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Module]]:
        """Return the last first: DistributedDataParallel takes gradients in the order of the modules."""
        yield from reversed(list(super().named_modules(*args, **options)))

    def forward(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.step(batch, batch_idx)
        if self.after is not None:
            self.after()
        return outputs
