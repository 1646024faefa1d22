"""What a module is made of, and what one pass over an example batch shows of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from shipline.train.seed import isolate_rng

UNKNOWN = "?"


@dataclass
class Pass:
    """Sizes and FLOPs of each submodule in a forward pass, and the memory that a backward pass would need."""

    sizes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    total_flops: int = 0
    activations: int = 0  # bytes


def parts(module: nn.Module, max_depth: int) -> dict[str, nn.Module]:
    """Return the submodules down to a depth by name, in order; -1: all."""
    named = list(module.named_modules())[1:]
    return {name: part for name, part in named if max_depth == -1 or name.count(".") < max_depth}


def count(module: nn.Module, *, recurse: bool = True, trainable: bool = False) -> int:
    """Return the number of the module's parameters; those of lazy layers are not known yet."""
    parameters = [p for p in module.parameters(recurse) if not is_lazy(p)]
    return sum(p.numel() for p in parameters if p.requires_grad or not trainable)


def run_example(module: nn.Module, forward: Callable[[], Any], names: set[str]) -> Pass:
    """Run `forward`, which calls the module with an example, in evaluation mode; the module stays as it was."""
    found = Pass()
    handles = [
        part.register_forward_hook(_sizes_into(found.sizes, name), with_kwargs=True)
        for name, part in module.named_modules()
        if name in names
    ]
    counter = FlopCounterMode(display=False)
    try:
        with _unchanged(module), _saved(module) as saved, counter, torch.enable_grad():
            forward()
            found.activations = sum(saved.values())
    finally:
        for handle in handles:
            handle.remove()
    flops = counter.get_flop_counts()
    found.flops = {name: sum(flops.get(f"{type(module).__name__}.{name}", {}).values()) for name in names}
    found.total_flops = counter.get_total_flops()
    return found


def _sizes_into(sizes: dict[str, tuple[Any, Any]], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = (*args, *kwargs.values())
        sizes.setdefault(name, (size_of(given[0] if len(given) == 1 else given), size_of(output)))

    return hook


def size_of(value: Any) -> Any:
    """Return the shape of a tensor, or those of several in a list or dict."""
    if hasattr(value, "shape"):
        return list(value.shape)
    if isinstance(value, list | tuple):
        return [size_of(item) for item in value]
    if isinstance(value, dict):
        return {key: size_of(item) for key, item in value.items()}
    return UNKNOWN


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode; afterwards modes, buffers and generators are what they were."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [(p, dict(p._buffers), {n: b.clone() for n, b in p._buffers.items() if b is not None})  # noqa: SLF001
               for p in module.modules() if p._buffers]  # noqa: SLF001  # fmt: skip
    with isolate_rng():
        try:
            module.eval()
            yield
        finally:
            for part, training in modes:
                part.training = training
            for part, own, copies in buffers:
                part._buffers.update(own)  # noqa: SLF001
                for name, copy in copies.items():
                    _put_back(own[name], copy)


@torch.no_grad()
def _put_back(buffer: Any, copy: torch.Tensor) -> None:
    if not torch.equal(buffer, copy):
        buffer.copy_(copy)


@contextlib.contextmanager
def _saved(module: nn.Module) -> Iterator[dict[int, int]]:
    """Collect the bytes of each piece of memory that autograd keeps for the backward pass, but for the module's own."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers()) if not is_lazy(t)}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout is torch.strided and (place := tensor.untyped_storage().data_ptr()) not in own:
            saved[place] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
