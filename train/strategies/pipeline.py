"""Workers that hold some of the layers each: PyTorch's pipelining. Steps of the module run as they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, get_schedule_class
from torch.utils._pytree import tree_map

from shipline.errors import ConfigError, nearest
from shipline.train.distributed import collectives
from shipline.train.strategies.base import Step, step_of
from shipline.train.strategies.lending import Lending
from shipline.train.strategies.mesh import Arrangement
from shipline.train.strategies.meta import materialized, names_of
from shipline.train.strategies.microbatches import MicrobatchedStep
from shipline.train.strategies.sharded import Sharded
from shipline.train.strategies.stages import check_layers, divided, layers_of
from shipline.train.strategies.tensors import clip_norm, whole

if TYPE_CHECKING:
    from shipline.train.module import Module

_STAGES = "_shipline_stages"
_SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B"}


class Pipeline(Sharded):
    """The module's layers, as `configure_pipeline` lists them, are divided into stages, one or more for each worker.

    A batch goes through them in microbatches. `training_step` runs on the last stage, once for each microbatch, with
    what the layers have computed in place of `forward`; evaluation steps run on all workers.

    Args:
        pipeline: workers in a row; default: all. Where there are more, each row of them has rows of data of its own,
            and the weights of a stage are sharded among the rows (FSDP).
        schedule: "gpipe" (Huang et al., arXiv 1811.06965), "1f1b" (Narayanan et al., arXiv 1806.03377), or
            "interleaved" (the same, arXiv 2104.04473), for which each worker has several stages.
        microbatches: of a batch; fewer where its rows do not divide by so many.
        stages: of each worker; above 1 for "interleaved" only.
    """

    name = "pp"

    def __init__(
        self,
        *,
        pipeline: int | None = None,
        schedule: str = "1f1b",
        microbatches: int = 4,
        stages: int | None = None,
    ) -> None:
        super().__init__(Arrangement(self.name, pipeline=pipeline, shard=None if pipeline is not None else 1))
        if schedule not in _SCHEDULES:
            raise ConfigError(
                f"The strategy {self.name} has schedule={schedule!r}.{nearest(schedule, _SCHEDULES)} Known: "
                f"{', '.join(_SCHEDULES)}."
            )
        self._schedule, self._microbatches = schedule, microbatches
        self._stages = (2 if schedule == "interleaved" else 1) if stages is None else stages
        if (self._stages > 1) != (schedule == "interleaved") or self._stages < 1 or microbatches < 1:
            raise ConfigError(
                f"The strategy {self.name} has schedule={schedule!r}, stages={stages!r} and "
                f"microbatches={microbatches!r}: let stages be 1, or more for 'interleaved'; microbatches 1 or more."
            )

    def place(self, module: Module) -> None:
        """Leave the module where it is: only this worker's layers are brought to the device."""

    def setup(self, module: Module) -> Module:
        """Return the module with the layers of other workers emptied."""
        workers, _, shard, _ = self.arrangement.sizes
        layers = layers_of(module)
        check_layers(module, layers, workers * self._stages)
        if shard > 1 and self._stages > 1:
            raise ConfigError(
                f"The strategy {self.name} has schedule='interleaved' and {shard} rows of {workers} workers: stages "
                "that are sharded cannot be interleaved; take schedule='1f1b', or all workers for one pipeline."
            )
        self._group = self.device_mesh["pipeline"].get_group()
        place = dist.get_rank(self._group)
        # A module that was trained before has its stages.
        self._own = module.__dict__.setdefault(_STAGES, {}) or self._staged(module, layers, workers, place)
        module.__dict__[_STAGES] = self._own
        if shard > 1:
            units = {str(number): cast(FSDPModule, stage) for number, stage in self._own.items()}
            self._lending = Lending(units, self, place)
        module.forward = self._evaluate
        return module

    def _staged(self, module: nn.Module, layers: list[nn.Module], workers: int, place: int) -> dict[int, nn.Module]:
        """This worker's stages by their numbers; the layers of others are emptied."""
        own: dict[int, nn.Module] = {}
        names, sharded = names_of(module), self.arrangement.sizes[2] > 1
        for number, part in enumerate(divided(layers, workers * self._stages)):
            if number % workers == place:
                stage = nn.Sequential(*part)
                materialized(stage, self.root_device, names)
                own[number] = self._sharded(stage) if sharded else stage.to(self.root_device)
            else:
                for layer in part:
                    layer.to("meta")
        return own

    def training_step(self, module: Module) -> Step:
        """Return the step that sends a batch through the stages, forwards and backwards."""
        if not module.automatic_optimization:
            raise ConfigError(
                f"{type(module).__name__} steps its optimizers itself, which a pipeline cannot follow: leave "
                "automatic_optimization on, or take the strategy fsdp."
            )
        if module.trainer.compile:
            raise ConfigError("Trainer has compile, and a pipeline's steps cannot be compiled: leave it out.")
        return MicrobatchedStep(module, step_of(module, "training_step"), self)

    @property
    def is_first(self) -> bool:
        """Whether this worker has the first stage."""
        return 0 in self._own

    @property
    def is_last(self) -> bool:
        """Whether this worker has the last stage."""
        return self.arrangement.sizes[0] * self._stages - 1 in self._own

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of this worker's stages that are trained."""
        for stage in self._own.values():
            yield from (parameter for parameter in stage.parameters() if parameter.requires_grad)

    def schedule(self, rows: int, loss: Callable[[Any, Any], torch.Tensor] | None) -> Any:
        """Return PyTorch's schedule for a batch of so many rows; without a loss it goes forwards only."""
        workers = self.arrangement.sizes[0]
        total = workers * self._stages
        stages = [
            PipelineStage(part, number, total, self.root_device, group=self._group)
            for number, part in self._own.items()
        ]
        most = range(min(self._microbatches, rows), 0, -1)
        count = next((count for count in most if rows % count == 0 and count % self._divisor == 0), None)
        if count is None:
            raise ConfigError(
                f"The strategy {self.name} divides a batch into {self._microbatches} microbatches or fewer, and "
                f"interleaved ones must be a multiple of the {workers} workers, which {rows} rows do not allow: choose "
                f"a batch size that {workers} divides, with drop_last=True, or schedule='1f1b'."
            )
        kind = get_schedule_class(_SCHEDULES[self._schedule])
        if issubclass(kind, PipelineScheduleMulti):
            return kind(stages, count, loss_fn=loss)
        if count < workers:  # 1F1B wants as many as there are stages
            kind = get_schedule_class("GPipe")
        return kind(stages[0], count, loss_fn=loss)

    def from_last(self, value: Any) -> Any:
        """Return what the last stage's worker has given."""
        last = dist.get_global_rank(self._group, self.arrangement.sizes[0] - 1)
        return collectives.broadcast_object(value, last, self._group)

    def in_step(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Return the batches; workers whose row has fewer than others lend their shards until those are done."""
        return self._lending.batches(batches) if self.data_world_size > 1 else batches

    def clip_grad_norm(self, parameters: list[torch.Tensor], max_norm: float) -> None:
        """Limit the norm of the gradients of all stages together."""
        clip_norm(parameters, max_norm, self._group)

    def weights(self, module: nn.Module) -> dict[str, Any]:
        """Return the module's state dict, whole, from all stages; every worker calls it."""
        state = module.state_dict()
        own = {name: whole(tensor).cpu() for name, tensor in state.items() if not tensor.is_meta}
        found = {
            name: tensor for theirs in collectives.gather_objects(own, self._group) for name, tensor in theirs.items()
        }
        return {name: found[name] for name in state}

    def _evaluate(self, *inputs: Any, **options: Any) -> Any:
        """What `forward` is outside training: all workers get what the last stage computes."""
        if options:
            raise ConfigError(f"A pipeline passes on what it is given in order, and not by name: {', '.join(options)}.")
        rows = _rows(inputs)
        found = self.schedule(rows + -rows % self._divisor, None).eval(*self._filled(inputs) if self.is_first else ())
        return self.from_last(tree_map(lambda output: output[:rows], found) if self.is_last else None)

    @property
    def _divisor(self) -> int:
        """By what the rows of a batch must divide: where they are interleaved, by the workers."""
        return self.arrangement.sizes[0] if self._stages > 1 else 1

    def _filled(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs with the last row repeated until they divide; in evaluation no row depends on another."""

        def filled(item: Any) -> Any:
            if not isinstance(item, torch.Tensor) or not item.dim() or len(item) % self._divisor == 0:
                return item
            return torch.cat([item, item[-1:].expand(-len(item) % self._divisor, *item.shape[1:])])

        return tuple(tree_map(filled, inputs))

    def _sharded(self, stage: nn.Module) -> nn.Module:
        mesh = self.device_mesh["shard"]
        sharded = fully_shard(stage, mesh=mesh, mp_policy=MixedPrecisionPolicy(), reshard_after_forward=True)
        return cast(nn.Module, sharded)


class PipelineFsdp(Pipeline):
    """Pipelines of two workers; the weights of a stage are sharded among the pipelines."""

    name = "pp+fsdp"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"pipeline": 2} | options)


def _rows(inputs: tuple[Any, ...]) -> int:
    """How many rows the first tensor has."""
    return next(len(item) for item in inputs if isinstance(item, torch.Tensor))
