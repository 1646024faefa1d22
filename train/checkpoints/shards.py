"""A state that workers hold in parts: who writes which, and how each reads what it holds, whoever wrote it.

The plans are those of torch.distributed.checkpoint: a part that several workers hold is written by one of them, and a
reader takes from the files what overlaps with its own parts, however many workers, or of which strategy, wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
from torch.distributed.checkpoint.planner import ReadItem, SavePlan

from shipline.checkpoint import Checkpoint
from shipline.errors import IntegrityError
from shipline.shards import Part, ShardIndex, Spread, part_key
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
            name, tensor = item.index.fqn, cast(torch.Tensor, planner.resolve_data(item))
            parts[part_key(name, item.index.offset or ())] = storable(tensor, name)
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

    Each file is read once, and let go of before the next one: give all targets at once.

    Raises:
        IntegrityError: it holds no tensor of that name, or one of another shape; or it is damaged.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(dict(targets), _metadata(index), is_coordinator=True)
    try:
        plan = planner.create_local_plan()
    except (RuntimeError, ValueError) as error:
        raise IntegrityError(f"{checkpoint} does not fit: {error}.") from error

    files = {part_key(name, part.offsets): part.file for name in targets for part in index.root[name].parts}
    wanted: dict[str, list[tuple[str, ReadItem]]] = {}
    for item in plan.items:
        key = part_key(item.storage_index.fqn, item.storage_index.offset or ())
        wanted.setdefault(files[key], []).append((key, item))
    for file, items in wanted.items():
        _copy(checkpoint, file, items, planner)


def _copy(checkpoint: Checkpoint, file: str, items: list[tuple[str, ReadItem]], planner: DefaultLoadPlanner) -> None:
    """Fill what is wanted of one file."""
    try:
        parts = safetensors.torch.load(checkpoint.read(file))
        found = [(parts[key], item) for key, item in items]
    except (KeyError, safetensors.SafetensorError) as error:
        raise IntegrityError(
            f"{checkpoint}/{file} is not what its index says: {error}. Take a checkpoint that was committed before it."
        ) from error
    for part, item in found:
        box = tuple(slice(o, o + s) for o, s in zip(item.storage_offsets, item.lengths, strict=True))
        planner.resolve_tensor(item).detach().copy_(part[box])


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
