"""A state that workers hold in parts: who writes which, and how each reads what it holds, whoever wrote it.

The plans are those of torch.distributed.checkpoint: a part that several workers hold is written by one of them, and a
reader takes from the files what overlaps with its own parts, however many workers, or of which strategy, wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import cast

import safetensors.torch
import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import SavePlan

from shipline.checkpoint import Checkpoint
from shipline.errors import IntegrityError
from shipline.shards import Part, ShardIndex, Spread
from shipline.train.checkpoints.tree import DTYPES, Tensors, storable
from shipline.train.strategies import Strategy

_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass
class Shares:
    """Of one kind of state: what this worker writes of it, and where everything lies.

    Args:
        stem: of the files' names.
    """

    stem: str
    _plan: SavePlan | None = None
    _own: SavePlan | None = None
    _index: ShardIndex = field(default_factory=lambda: ShardIndex({}))

    def plan(self, tensors: Tensors, strategy: Strategy) -> tuple[Tensors, ShardIndex]:
        """Return the parts that this worker writes, by their names in its file; and the index. All workers call it.

        Workers agree on the plan anew only when the state of one of them looks different.
        """
        planner = DefaultSavePlanner(flatten_state_dict=False)
        planner.set_up_planner(tensors, None, strategy.is_global_zero)
        plan = planner.create_local_plan()
        if strategy.reduce_boolean_decision(self._plan is None or plan != self._plan, all=False):
            plans, metadata = planner.create_global_plan(strategy.gather(plan))
            self._plan, self._own = plan, plans[strategy.rank]
            self._index = _index(plans, metadata, self.stem)
        assert self._own is not None
        parts = {}
        for item in self._own.items:
            part = Part(file="", offsets=tuple(item.index.offset or ()), sizes=())
            parts[part.key(item.index.fqn)] = storable(cast(torch.Tensor, planner.resolve_data(item)), item.index.fqn)
        return parts, self._index

    def file(self, rank: int, world_size: int) -> str:
        """Return the name of a worker's file."""
        return _file(self.stem, rank, world_size)


def _file(stem: str, rank: int, world_size: int) -> str:
    return f"{stem}-{rank:05d}-of-{world_size:05d}.safetensors"


def _index(plans: list[SavePlan], metadata: Metadata, stem: str) -> ShardIndex:
    parts: dict[str, list[Part]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            sizes = item.tensor_data.chunk.sizes if item.tensor_data is not None else ()
            part = Part(file=_file(stem, rank, len(plans)), offsets=tuple(item.index.offset or ()), sizes=tuple(sizes))
            parts.setdefault(item.index.fqn, []).append(part)
    return ShardIndex(
        {
            name: Spread(dtype=DTYPES[about.properties.dtype], shape=tuple(about.size), parts=parts[name])
            for name, about in metadata.state_dict_metadata.items()
            if isinstance(about, TensorStorageMetadata)
        }
    )


def read_shards(checkpoint: Checkpoint, index: ShardIndex, targets: Mapping[str, torch.Tensor]) -> None:
    """Fill the targets, whole ones or this worker's parts of spread ones, with what the checkpoint holds.

    Raises:
        IntegrityError: it holds no tensor of that name, or one of another shape; or it is damaged.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(dict(targets), _metadata(index), is_coordinator=True)
    try:
        plan = planner.create_local_plan()
    except (RuntimeError, ValueError) as error:
        raise IntegrityError(f"{checkpoint} does not fit: {error}.") from error

    @cache
    def opened(file: str) -> Tensors:
        return safetensors.torch.load(checkpoint.read(file))

    for item in plan.items:
        offsets = tuple(item.storage_index.offset or ())
        part = next(p for p in index.root[item.storage_index.fqn].parts if p.offsets == offsets)
        try:
            stored = opened(part.file)[part.key(item.storage_index.fqn)]
        except (KeyError, safetensors.SafetensorError) as error:
            raise IntegrityError(f"{checkpoint}/{part.file} is not what its index says: {error}.") from error
        for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            stored = stored.narrow(dimension, start, length)
        planner.resolve_tensor(item).detach().copy_(stored)


def _metadata(index: ShardIndex) -> Metadata:
    return Metadata(
        {
            name: TensorStorageMetadata(
                TensorProperties(dtype=_DTYPES[tensor.dtype]),
                torch.Size(tensor.shape),
                [ChunkStorageMetadata(torch.Size(part.offsets), torch.Size(part.sizes)) for part in tensor.parts],
            )
            for name, tensor in index.root.items()
        }
    )


def like(index: ShardIndex, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor for what is stored under the name: spread as the parameter is, where it has its shape."""
    stored = index.root[name]
    dtype = _DTYPES[stored.dtype]
    if stored.shape == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    return torch.empty(stored.shape, dtype=dtype)
