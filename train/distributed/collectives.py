"""What workers exchange: tensors, alone or in lists, tuples, mappings and dataclasses, and plain objects.

All workers of a group call the same function at the same point. Without a process group one worker is alone, and each
returns what it was given.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_object_coll_device

from shipline.errors import ConfigError, ShiplineError, nearest
from shipline.train.batches import mapped

T = TypeVar("T")

_OPERATIONS = {
    "mean": dist.ReduceOp.SUM, "sum": dist.ReduceOp.SUM, "product": dist.ReduceOp.PRODUCT,
    "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX,
}  # fmt: skip


def operation(reduce_op: Any) -> str:
    """Return the name of what `reduce` is to do, which is given by its name, or as torch's ReduceOp.

    Raises:
        ConfigError: it is none that there is.
    """
    name = str(reduce_op).lower().rpartition(".")[2]
    name = "mean" if name == "avg" else name
    if name not in _OPERATIONS:
        raise ConfigError(
            f"reduce has reduce_op={reduce_op!r}.{nearest(name, _OPERATIONS)} Known: {', '.join(_OPERATIONS)}."
        )
    return name


def barrier(group: Any = None) -> None:
    """Wait for all workers."""
    if _size(group) > 1:
        dist.barrier(group=group)


def gather_objects(value: T, group: Any = None) -> list[T]:
    """Return every worker's `value`, in order of rank. For small, plain values."""
    size = _size(group)
    if size == 1:
        return [value]
    values: list[Any] = [None] * size
    dist.all_gather_object(values, value, group=group)
    return values


def broadcast_object(value: T, src: int = 0, group: Any = None) -> T:
    """Return worker `src`'s `value`."""
    if _size(group) == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=src, group=group)
    return values[0]


def first_does(action: Callable[[], T], group: Any = None) -> T:
    """Return what the first worker's `action` returns, which it alone calls.

    Raises:
        ShiplineError: that which the action raises, on all workers.
    """
    if _size(group) == 1:
        return action()
    result: Any = None
    failure: Exception | None = None
    if dist.get_rank(group) == 0:
        try:
            result = action()
        except Exception as error:
            failure = error
    known = failure if isinstance(failure, ShiplineError) else None
    result, shared, failed = broadcast_object((result, known, failure is not None), group=group)
    if failure is not None:
        raise failure
    if failed:
        raise shared or ShiplineError("Worker 0 has failed: its own error is the cause.")
    return result  # type: ignore[no-any-return]


def broadcast(tree: T, src: int = 0, group: Any = None) -> T:
    """Return worker `src`'s tensors in a tree like this worker's; new tensors.

    Raises:
        ConfigError: the workers' tensors have different forms.
    """
    if _size(group) == 1:
        return tree
    _check_alike("broadcast", tree, group)

    def send(tensor: torch.Tensor) -> torch.Tensor:
        sent = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(sent, src=src, group=group)
        return sent

    return _each(tree, send)


def all_gather(tree: T, group: Any = None, pad: float | None = None) -> T:
    """Return every worker's tensors, stacked along a new first dimension, in a tree like this worker's.

    Args:
        tree: a tensor, or tensors in containers; what is no tensor stays as it is.
        group: of the workers; default: all.
        pad: what to fill up smaller tensors with, so that all are as large as the largest.

    Raises:
        ConfigError: the workers' tensors have different forms, and `pad` is not set.
    """
    size = _size(group)
    if size == 1:
        return _each(tree, lambda tensor: tensor.unsqueeze(0))
    tree = _check_alike("all_gather", tree, group) if pad is None else _padded(tree, pad, group)

    def gather(tensor: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size)]
        dist.all_gather(gathered, tensor.contiguous(), group=group)
        return torch.stack(gathered)

    return _each(tree, gather)


def reduce(tree: T, reduce_op: Any = "mean", group: Any = None, check: bool = True) -> T:
    """Return the mean, the sum, the product, the least or the greatest over all workers, in a tree of new tensors.

    Args:
        tree: a tensor, or tensors in containers; what is no tensor stays as it is.
        reduce_op: what to do, by its name or as torch's ReduceOp.
        group: of the workers; default: all.
        check: compare the forms of all workers' tensors first, which takes an exchange of its own.

    Raises:
        ConfigError: there is no such operation, or the workers' tensors have different forms.
    """
    name, size = operation(reduce_op), _size(group)
    if size == 1:
        return tree
    if check:
        _check_alike("reduce", tree, group)

    def total(tensor: torch.Tensor) -> torch.Tensor:
        result = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(result, _OPERATIONS[name], group=group)
        return result / size if name == "mean" else result

    return _each(tree, total)


def _size(group: Any) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def _each(tree: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    return mapped(tree, lambda item: isinstance(item, torch.Tensor), change)  # type: ignore[no-any-return]


def _forms(tree: Any) -> list[tuple[tuple[int, ...], str]]:
    return [(tuple(tensor.shape), str(tensor.dtype)) for tensor in _tensors(tree)]


def _tensors(tree: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    _each(tree, keep)
    return found


def _check_alike(what: str, tree: T, group: Any) -> T:
    """Return the tree; what differs between workers would hang them, or mix up their numbers."""
    own = _forms(tree)
    if _agree(zlib.crc32(repr(own).encode()), tree, group):
        return tree
    everybody = gather_objects(own, group)
    for rank, forms in enumerate(everybody):
        if forms != everybody[0]:
            different = [(one, other) for one, other in zip(everybody[0], forms, strict=False) if one != other]
            if not different:
                raise ConfigError(
                    f"{what} was given {len(everybody[0])} tensors on worker 0 and {len(forms)} on worker {rank}: give "
                    "each worker a tree of the same form."
                )
            (shape, dtype), (other_shape, other_dtype) = different[0]
            raise ConfigError(
                f"{what} was given a tensor of shape {shape} and {dtype} on worker 0, and {other_shape} and "
                f"{other_dtype} on worker {rank}: give tensors of one form, or pad them (all_gather has pad=...)."
            )
    return tree


def _agree(fingerprint: int, tree: Any, group: Any) -> bool:
    """Whether all workers have the same number: eight bytes each, where objects would take several exchanges."""
    tensors = _tensors(tree)
    own = torch.tensor([fingerprint], device=tensors[0].device if tensors else _get_object_coll_device(group))
    everybody = [torch.empty_like(own) for _ in range(_size(group))]
    dist.all_gather(everybody, own, group=group)
    return len(set(torch.cat(everybody).tolist())) == 1


def _padded(tree: T, fill: float, group: Any) -> T:
    """Return the tree with every tensor as large as the largest of all workers' in its place."""
    everybody = gather_objects(_forms(tree), group)
    kinds = [[(len(shape), dtype) for shape, dtype in forms] for forms in everybody]
    if any(kind != kinds[0] for kind in kinds):
        raise ConfigError(
            f"all_gather(pad=...) fills up tensors of one dtype and number of dimensions, and was given {everybody}."
        )
    largest = iter([tuple(map(max, *(shape for shape, _ in forms))) for forms in zip(*everybody, strict=True)])

    def fill_up(tensor: torch.Tensor) -> torch.Tensor:
        filled = tensor.new_full(next(largest), fill)
        filled[tuple(slice(0, length) for length in tensor.shape)] = tensor
        return filled

    return _each(tree, fill_up)
