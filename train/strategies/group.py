"""Workers of PyTorch's process group: who each is, and how values travel between them."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist

from shipline.train.strategies.base import Strategy, operation


class Joined(Strategy):
    """One of the workers of a process group that exists already; what they train, a strategy derived from it says."""

    joins_workers = True

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


_OPERATIONS = {
    "mean": dist.ReduceOp.SUM, "sum": dist.ReduceOp.SUM, "product": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX,
}  # fmt: skip
