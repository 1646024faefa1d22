"""Workers that hold a part of the weights each: what such strategies have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shipline.train.strategies.group import Joined
from shipline.train.strategies.mesh import Arrangement
from shipline.train.strategies.tensors import clip_norm, clip_value, is_spread, whole

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.optim import Optimizer


class Sharded(Joined):
    """Workers in an arrangement, each with its part of the module."""

    shards_weights = True
    infers = False  # spread tensors do not work in torch.inference_mode
    #: Whether weights that were made whole for a forward pass are freed after it.
    frees_after_forward = True

    def __init__(self, arrangement: Arrangement) -> None:
        self.arrangement = arrangement

    @property
    def device_mesh(self) -> DeviceMesh:
        """PyTorch's mesh of all workers; its dimensions are pipeline, replicate, shard and tensor."""
        return self.arrangement.mesh(self.root_device.type)

    @property
    def data_rank(self) -> int:
        """The number of this worker's share of the rows."""
        return self.arrangement.data_rank(self.rank)

    @property
    def data_world_size(self) -> int:
        """Into how many shares rows are divided."""
        return self.arrangement.data_world_size

    def gather_data(self, value: Any) -> list[Any]:
        """Return the `value` of one worker of each share of the rows, in order of the shares."""
        everybody = self.gather(value)
        return [everybody[rank] for rank in self.arrangement.leaders()]

    def setup_optimizers(self, optimizers: list[Optimizer], schedulers: list[Any]) -> list[Optimizer]:
        """Keep optimizers from one operation over spread tensors and others together, which PyTorch refuses."""
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                meshes = {p.device_mesh if is_spread(p) else None for p in group["params"]}
                for option in ("foreach", "fused") if len(meshes) > 1 else ():
                    if option in group:
                        group[option] = False
        return optimizers

    def clip_grad_norm(self, parameters: list[torch.Tensor], max_norm: float) -> None:
        """Limit the norm of all gradients together, those on other workers included."""
        clip_norm(parameters, max_norm)

    def clip_grad_value(self, parameters: list[torch.Tensor], most: float) -> None:
        """Limit each value of the gradients."""
        clip_value(parameters, most)

    def weights(self, module: nn.Module) -> dict[str, Any]:
        """Return the module's state dict, whole; every worker calls it."""
        found: dict[str, Any] = whole(module.state_dict())
        return found
