"""Workers of PyTorch's process group: who each is, and how values travel between them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from shipline.train.distributed import collectives, environment
from shipline.train.strategies.base import Strategy

#: What a strategy has only in the process that it runs in.
_OF_PROCESS = ("_background", "_lending", "_own", "_group")


class Joined(Strategy):
    """One of the workers of a process group that exists already; what they train, a strategy derived from it says."""

    joins_workers = True
    _background: Any = None

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
        """The number of this worker on its machine, which who started it says: Ray, torchrun, SLURM and others."""
        found = environment()
        return 0 if found is None else found.local_rank()

    @property
    def node_rank(self) -> int:  # type: ignore[override]
        """The number of this machine, which who started the worker says."""
        found = environment()
        return 0 if found is None else found.node_rank()

    def barrier(self, name: str | None = None) -> None:
        """Wait for all workers."""
        collectives.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's `value`, in order of rank."""
        return collectives.gather_objects(value)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return worker `src`'s `obj`."""
        return collectives.broadcast_object(obj, src)

    def background(self) -> Callable[[Any], list[Any]]:
        """Return what gathers as `gather` does, in another thread, while this one goes on; all call it."""
        if self._background is None:
            self._background = dist.new_group(backend="gloo")
        return partial(collectives.gather_objects, group=self._background)

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: not the groups of this one."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_PROCESS}

    def all_gather(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> torch.Tensor:
        """Return every worker's tensor, stacked."""
        if sync_grads:
            from torch.distributed.nn.functional import all_gather

            return torch.stack(list(all_gather(tensor, group or dist.group.WORLD)))  # type: ignore[no-untyped-call]
        return collectives.all_gather(tensor, group)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Return the mean, the sum, the product, the least or the greatest over all workers; a new tensor.

        The workers' tensors are taken to be of one form: what checks that is `shipline.train.distributed.reduce`.
        """
        return collectives.reduce(tensor, reduce_op, group, check=False)
