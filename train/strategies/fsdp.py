"""Workers that hold a part of each weight: PyTorch's `fully_shard` (FSDP2), within layers that may be cut as well."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from shipline.errors import ConfigError
from shipline.train.strategies.base import Step
from shipline.train.strategies.lending import Lending
from shipline.train.strategies.mesh import Arrangement
from shipline.train.strategies.meta import materialized, names_of
from shipline.train.strategies.sharded import Sharded
from shipline.train.strategies.tensor_parallel import Plan, cut
from shipline.train.strategies.tensors import complete_gradients, is_spread
from shipline.train.strategies.units import Choice, Kinds, checkpointed, units

if TYPE_CHECKING:
    from shipline.train.module import Module

#: What the loops call in place of `forward`: weights must be whole in these as well.
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class Fsdp(Sharded):
    """Weights, gradients and optimizer state are sharded; each layer's weights are whole only while it computes.

    Args:
        replicate: copies of the sharded weights (HSDP): workers of one copy exchange weights, copies gradients only.
        tensor: workers among which single layers are cut (tensor parallelism), as the module's `parallelize_plan` says.
        plan: takes the place of `parallelize_plan`.
        wrap: what becomes whole together: classes, their names, or a function of a module's name and itself that says
            so; default: each layer of a ModuleList, and PyTorch's own transformer layers. The rest is one unit.
        activation_checkpointing: classes, or their names, whose activations are computed again in the backward pass.
        cpu_offload: keep weights, gradients and optimizer state in the CPU's memory.
        param_dtype: dtype in which layers compute and weights travel, such as "bfloat16"; default: the weights' own.
        reduce_dtype: dtype in which gradients travel; default: that of the gradients.
        reshard_after_forward: free weights after the forward pass, and fetch them again for the backward pass; with
            False they stay (ZeRO, stage 2).
    """

    name = "fsdp"

    def __init__(
        self,
        *,
        replicate: int = 1,
        tensor: int | None = 1,
        plan: Plan | None = None,
        wrap: Choice | None = None,
        activation_checkpointing: Kinds | None = None,
        cpu_offload: bool = False,
        param_dtype: str | torch.dtype | None = None,
        reduce_dtype: str | torch.dtype | None = None,
        reshard_after_forward: bool = True,
    ) -> None:
        shard = None if tensor is not None else 1
        super().__init__(Arrangement(self.name, replicate=replicate, shard=shard, tensor=tensor))
        self._plan, self._wrap, self._checkpointing = plan, wrap, activation_checkpointing
        self._cpu_offload, self.frees_after_forward = cpu_offload, reshard_after_forward
        self._dtypes = (_dtype("param_dtype", param_dtype), _dtype("reduce_dtype", reduce_dtype))

    def place(self, module: Module) -> None:
        """Leave the module where it is: each unit is brought to the device as it is sharded, and never the whole."""

    def setup(self, module: Module) -> Module:
        """Return the module with its weights sharded: unit after unit, so that no more than one is ever whole."""
        _, replicate, shard, tensor = self.arrangement.sizes
        if not any(is_spread(parameter) for parameter in module.parameters()):  # it was not trained before
            if tensor > 1:
                cut(module, self.device_mesh["tensor"], self._plan)
            if self._checkpointing is not None:
                checkpointed(module, self._checkpointing)
            if replicate * shard > 1:
                self._shard(module)
            else:
                materialized(module, self.root_device, names_of(module))
                module.to(self.root_device)
                complete_gradients(module)
        if replicate * shard > 1:
            sharded = {name: part for name, part in module.named_modules() if isinstance(part, FSDPModule)}
            self._lending = Lending(sharded, self, step="")
        return module

    def _shard(self, module: Module) -> None:
        options, names = self._options(), names_of(module)
        for unit in units(module, self._wrap):
            materialized(unit, self.root_device, names)
            fully_shard(unit, **options)
        materialized(module, self.root_device, names)
        fully_shard(module, **options)
        for step in _STEPS:
            _make_whole_in(module, step)

    def class_of(self, module: Module) -> type:
        """Return the class that the user gave the module, of which `fully_shard` has derived another."""
        return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))

    def no_sync(self, step: Step) -> AbstractContextManager[Any]:
        """Exchange gradients all the same: kept whole until the last batch, they would take what sharding saves."""
        return nullcontext()

    def before_manual_backward(self, step: Step, loss: torch.Tensor) -> None:
        """Prepare a backward pass inside the training step, of which FSDP would hear only after it."""
        module = getattr(step, "__self__", None)
        if isinstance(module, FSDPModule):
            fully_shard.state(module)._register_pre_backward_hook(loss)  # type: ignore[attr-defined] # noqa: SLF001

    def in_step(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Return the batches; a worker that has fewer than others lends its shards until they are done."""
        return self._lending.batches(batches) if self.data_world_size > 1 else batches

    def _options(self) -> dict[str, Any]:
        param_dtype, reduce_dtype = self._dtypes
        mesh, cuda = self.device_mesh, self.root_device.type == "cuda"
        return {
            "mesh": mesh["replicate", "shard"] if self.arrangement.sizes[1] > 1 else mesh["shard"],
            "mp_policy": MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype),
            "offload_policy": CPUOffloadPolicy(pin_memory=cuda) if self._cpu_offload else OffloadPolicy(),
            "reshard_after_forward": self.frees_after_forward,
        }


class TensorParallel(Fsdp):
    """Single layers are cut among workers, as the module's `parallelize_plan` says; these see the same rows.

    Args:
        tensor: workers among which layers are cut; default: all. Where there are more, each group of them has rows of
            its own, and weights are sharded among the groups.
        options: of `Fsdp`.
    """

    name = "tp"

    def __init__(self, *, tensor: int | None = None, **options: Any) -> None:
        super().__init__(tensor=tensor, **options)


class FsdpTensorParallel(Fsdp):
    """FSDP among pairs of workers, who cut single layers between them."""

    name = "fsdp+tp"

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"tensor": 2} | options)


class FsdpCpuOffload(Fsdp):
    """FSDP that keeps weights, gradients and optimizer state in the CPU's memory."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"cpu_offload": True} | options)


def _make_whole_in(module: nn.Module, method: str) -> None:
    """Let the module's own weights be whole in a method, whose parameters stay to be seen (PyTorch's wrapper lies)."""
    parameters = inspect.signature(getattr(module, method)).parameters.values()
    register_fsdp_forward_method(module, method)
    wrapper = module.__dict__[method].__func__
    del wrapper.__wrapped__
    wrapper.__signature__ = inspect.Signature([_SELF, *parameters])


_SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)


def _dtype(name: str, given: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if found is not None and isinstance(found, torch.dtype):
        return found
    if given is None:
        return None
    raise ConfigError(f"The strategy fsdp has {name}={given!r}; set a dtype of torch, such as 'bfloat16'.")
