"""How the workers of a run are arranged: PyTorch's DeviceMesh, and what each one's place in it means."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from shipline.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

#: The dimensions, the slowest first: neighbours in the last one exchange most.
DIMENSIONS = ("pipeline", "replicate", "shard", "tensor")


@dataclass
class Arrangement:
    """So many workers along each dimension.

    Args:
        strategy: its name, for messages.
        pipeline: stages that hold one part of the layers each; None, of this or another: what the others leave.
        replicate: copies of the sharded weights.
        shard: workers among which weights are sharded.
        tensor: workers among which single layers are cut.

    Raises:
        ConfigError: a number is no whole number from 1 on.
    """

    strategy: str
    pipeline: int | None = 1
    replicate: int | None = 1
    shard: int | None = 1
    tensor: int | None = 1
    _device: str = field(default="cpu", init=False)

    def __post_init__(self) -> None:
        for name in DIMENSIONS:
            size = getattr(self, name)
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ConfigError(f"The strategy {self.strategy} has {name}={size!r}; set a whole number from 1 on.")

    @cached_property
    def sizes(self) -> tuple[int, int, int, int]:
        """The workers along each dimension.

        Raises:
            ConfigError: together they are not the workers that there are.
        """
        workers = dist.get_world_size()
        given = [getattr(self, name) for name in DIMENSIONS]
        rest = max(1, workers // math.prod(size for size in given if size is not None))
        pipeline, replicate, shard, tensor = (rest if size is None else size for size in given)
        product = pipeline * replicate * shard * tensor
        if product != workers:
            wanted = f"pipeline={pipeline} x replicate={replicate} x shard={shard} x tensor={tensor}"
            raise ConfigError(
                f"The strategy {self.strategy} has {wanted}, which makes {product} workers, and there are {workers}: "
                "let the product be the number of workers."
            )
        return pipeline, replicate, shard, tensor

    def mesh(self, device: str) -> DeviceMesh:
        """Return the mesh over all workers; every worker must call it the first time."""
        self._device = device
        return self._mesh

    @cached_property
    def _mesh(self) -> DeviceMesh:
        return init_device_mesh(self._device, self.sizes, mesh_dim_names=DIMENSIONS)

    def place(self, rank: int) -> tuple[int, int, int, int]:
        """Return a worker's place along each dimension."""
        _, _, shard, tensor = self.sizes
        rank, in_tensor = divmod(rank, tensor)
        rank, in_shard = divmod(rank, shard)
        in_pipeline, in_replicate = divmod(rank, self.sizes[1])
        return in_pipeline, in_replicate, in_shard, in_tensor

    @property
    def data_world_size(self) -> int:
        """Into how many shares rows are divided: workers of one pipeline, or of one cut layer, see the same."""
        return self.sizes[1] * self.sizes[2]

    def data_rank(self, rank: int) -> int:
        """Return the number of a worker's share of the rows."""
        _, in_replicate, in_shard, _ = self.place(rank)
        return in_replicate * self.sizes[2] + in_shard

    def leaders(self) -> list[int]:
        """Return one worker of each share, in order: of a pipeline the last stage, which knows the results."""
        ranks = range(dist.get_world_size())
        last = self.sizes[0] - 1
        return [rank for rank in ranks if self.place(rank)[0] == last and self.place(rank)[3] == 0]

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: the numbers, not the mesh of this one."""
        return {name: getattr(self, name) for name in ("strategy", *DIMENSIONS, "_device")}
