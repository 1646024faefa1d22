"""Workers with a copy of the module each, joined by PyTorch's DistributedDataParallel."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel.distributed import _find_tensors

from shipline.train.strategies.base import Step, Strategy, operation, step_of

if TYPE_CHECKING:
    from shipline.train.module import Module


class Ddp(Strategy):
    """Workers of a process group that exists already, each with a copy of the module; gradients are averaged.

    Args:
        options: of `torch.nn.parallel.DistributedDataParallel`, such as `find_unused_parameters=True`.
    """

    joins_workers = True

    def __init__(self, **options: Any) -> None:
        self._options = options

    @property
    def rank(self) -> int:  # type: ignore[override]
        """The number of this worker, from 0."""
        return dist.get_rank()

    @property
    def world_size(self) -> int:  # type: ignore[override]
        """The number of workers."""
        return dist.get_world_size()

    @property
    def local_rank(self) -> int:  # type: ignore[override]
        """The number of this worker on its machine, which who started it says: Ray, torchrun."""
        return int(os.environ.get("LOCAL_RANK", "0"))

    @property
    def node_rank(self) -> int:  # type: ignore[override]
        """The number of this machine, which who started the worker says."""
        return int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0")))

    def training_step(self, module: Module) -> Step:
        """Return the step inside DistributedDataParallel, which synchronises only what its own forward runs."""
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return step_of(module, "training_step")
        devices = None if module.device.type == "cpu" else [module.device.index]
        step = DistributedDataParallel(_TrainingStep(module), device_ids=devices, **self._options)
        return step if module.automatic_optimization else _BackwardInside(step)

    def no_sync(self, step: Step) -> AbstractContextManager[Any]:
        """Let gradients wait for the last batch of an accumulation."""
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

    def barrier(self, name: str | None = None) -> None:
        """Wait for all workers."""
        dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's `value`, in order of rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_gather(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> torch.Tensor:
        """Return every worker's tensor, stacked."""
        if sync_grads:
            from torch.distributed.nn.functional import all_gather

            return torch.stack(list(all_gather(tensor, group or dist.group.WORLD)))  # type: ignore[no-untyped-call]
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, tensor.contiguous(), group=group)
        return torch.stack(gathered)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Return the mean, the sum, the product, the least or the greatest over all workers; a new tensor."""
        name = operation(reduce_op)
        if not isinstance(tensor, torch.Tensor):
            return tensor
        total = tensor.clone()
        dist.all_reduce(total, _OPERATIONS[name], group=group)
        return total / dist.get_world_size(group) if name == "mean" else total


class DdpFindUnusedParameters(Ddp):
    """For modules whose steps do not use all parameters each time."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"find_unused_parameters": True} | options)


_OPERATIONS = {
    "mean": dist.ReduceOp.SUM, "sum": dist.ReduceOp.SUM, "product": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX,
}  # fmt: skip


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

    def forward(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.step(batch, batch_idx)
        if self.after is not None:
            self.after()
        return outputs
