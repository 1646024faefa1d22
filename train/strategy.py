"""How the workers of a run work together. One process is the default; more are joined by PyTorch's own DDP."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shipline.errors import ConfigError
from shipline.train.module import Module

Step = Callable[[Any, int], Any]


class SingleProcess:
    """One worker. The interface of every strategy, and its simplest form."""

    rank = 0
    world_size = 1

    def training_step(self, module: Module) -> Step:
        """Return the function that runs a training step so that gradients are those of all workers."""
        return step_of(module, "training_step")

    def barrier(self) -> None:
        """Wait for all workers."""

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's `value`, in order of rank. For small, plain values."""
        return [value]

    def shard(self, loader: Any, *, shuffle: bool) -> Any:
        """Return the loader of this worker's share of the rows."""
        return loader


class Ddp(SingleProcess):
    """Workers of a process group that exists already, each with a copy of the module; gradients are averaged."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def training_step(self, module: Module) -> Step:
        """Return the step inside DistributedDataParallel, which synchronises only what its own forward runs."""
        devices = None if module.device.type == "cpu" else [module.device.index]
        return DistributedDataParallel(_TrainingStep(module), device_ids=devices)

    def barrier(self) -> None:
        """Wait for all workers."""
        dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's `value`, in order of rank."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def shard(self, loader: Any, *, shuffle: bool) -> Any:
        """Return the loader of this worker's share: padded to equal lengths in training, exact elsewhere."""
        from shipline.train.sharding import shard

        return shard(loader, self.rank, self.world_size, training=shuffle)


class _TrainingStep(nn.Module):
    """Makes a training step a forward pass: what DistributedDataParallel watches."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module
        self.step = step_of(module, "training_step")

    def forward(self, batch: Any, batch_idx: int) -> Any:
        return self.step(batch, batch_idx)


def step_of(module: Module, name: str) -> Step:
    """Return a step as a function of batch and index, whether or not the user's own takes the index."""
    function = getattr(module, name)
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if not positional:
        raise ConfigError(f"{type(module).__name__}.{name} takes no batch: define {name}(self, batch, batch_idx).")
    if len(positional) > 1 or positional[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return function  # type: ignore[no-any-return]
    return lambda batch, _batch_idx: function(batch)


def pick_device(accelerator: str) -> torch.device:
    """Return the device of this process.

    Raises:
        ConfigError: this machine has no such accelerator.
    """
    found = torch.accelerator.current_accelerator(check_available=True)
    if accelerator == "cpu" or (accelerator == "auto" and found is None):
        return torch.device("cpu")
    wanted = "cuda" if accelerator == "gpu" else accelerator
    if found is None or wanted not in ("auto", found.type):
        have = found.type if found else "none"
        raise ConfigError(f"accelerator={accelerator!r}, but this machine has {have}: choose 'cpu' or 'auto'.")
    return torch.device(found.type, torch.accelerator.current_device_index())


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with its tensors on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    if hasattr(batch, "to"):  # what a tokenizer returns, or a class of the user's
        return batch.to(device)
    return batch
