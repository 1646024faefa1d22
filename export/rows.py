"""Real rows: what a module's own validation gives to its forward, and what forward makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from shipline.backends.base import Arrays
from shipline.errors import SignatureError
from shipline.export.outputs import Structure, taken_apart
from shipline.signature import OIP_DATATYPES

_KNOWN = {getattr(torch, name) for name in OIP_DATATYPES}


class Rows:
    """The first rows that went through forward: inputs by parameter name, outputs in order, each as one array."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inputs: dict[str, list[np.ndarray]] = {}
        self._outputs: list[list[np.ndarray]] = []
        self._places: dict[bytes, int] = {}
        self._names: list[str] = []
        self._shapes: dict[str, torch.Size] = {}
        self._labels: list[np.ndarray] | None = []
        self.structure: Structure | None = None
        self.seen = 0
        #: Number of an output -> how many of its rows are NaN or infinite, and the first; of all rows.
        self.not_finite: dict[int, tuple[int, int]] = {}
        #: Where in memory the tensors are that forward was given last.
        self.given: set[int] = set()

    def __len__(self) -> int:
        return min(self.seen, self._limit)

    @property
    def inputs(self) -> Arrays:
        """Name of a forward parameter -> [rows, ...]."""
        return {name: np.concatenate(parts)[: self._limit] for name, parts in self._inputs.items()}

    @property
    def outputs(self) -> list[np.ndarray]:
        """One array [rows, ...] for each output."""
        return [np.concatenate(parts)[: self._limit] for parts in self._outputs]

    @property
    def labels(self) -> np.ndarray | None:
        """The right class of each row; None where they are not known of all."""
        found = np.concatenate(self._labels)[: self._limit] if self._labels else np.empty(0, np.int64)
        return found if 0 < len(found) == len(self) else None

    def add_labels(self, labels: np.ndarray | None) -> None:
        """Take the right classes of the rows that were added last; None where they are not known."""
        if self._labels is not None and sum(map(len, self._labels)) < self._limit:
            self._labels = None if labels is None else [*self._labels, labels]

    def has_seen(self, row: Arrays) -> bool:
        """Whether forward was given exactly this row, with a batch dimension, among all rows and not only the first."""
        return self._place(row) is not None

    def place_of(self, row: Arrays) -> int | None:
        """Where exactly this row is among those that are kept; None where it is not."""
        place = self._place(row)
        return place if place is not None and place < self._limit else None

    def _place(self, row: Arrays) -> int | None:
        if row.keys() != set(self._names):
            return None
        return self._places.get(digests([row[name] for name in self._names])[0])

    def add(self, inputs: dict[str, torch.Tensor], output: Any) -> None:
        """Take a batch."""
        _register(type(output))
        leaves, structure = taken_apart(output)
        rows = _check_batch(inputs, leaves)
        self._check_same(list(inputs), structure)
        self._check_shapes({f"Input {name!r}": tensor for name, tensor in inputs.items()})
        self._check_shapes({f"Output {i}": leaf for i, leaf in enumerate(leaves)})
        self._count_not_finite(leaves)
        arrays = {name: tensor.numpy(force=True) for name, tensor in inputs.items()}
        for place, digest in enumerate(digests(list(arrays.values())), self.seen):
            self._places.setdefault(digest, place)
        if self.seen < self._limit:
            self._take(arrays, [leaf.numpy(force=True) for leaf in leaves])
        self.seen += rows

    def _check_same(self, names: list[str], structure: Structure) -> None:
        """A graph takes and gives the same tensors in every call."""
        if self.structure is None:
            self._names, self.structure = names, structure
        if names != self._names:
            raise SignatureError(
                f"validation_step calls forward with {', '.join(self._names)} and with {', '.join(names)}; a graph "
                "takes the same inputs in every call."
            )
        if structure != self.structure:
            raise SignatureError("forward gives outputs of one structure in one call and of another in the next.")

    def _check_shapes(self, tensors: dict[str, torch.Tensor]) -> None:
        """Of all rows, and not only of those that are kept: the metric is computed on all."""
        for what, tensor in tensors.items():
            known = self._shapes.setdefault(what, tensor.shape[1:])
            if known != tensor.shape[1:]:
                raise SignatureError(
                    f"{what} has rows of shape {list(known)} and of {list(tensor.shape[1:])}; only the batch may "
                    "vary. Pad rows to one shape in the DataModule."
                )

    def _count_not_finite(self, outputs: list[torch.Tensor]) -> None:
        """Of all rows, as above."""
        for number, output in enumerate(outputs):
            bad = (~torch.isfinite(output)).unsqueeze(-1).flatten(1).any(dim=1)
            if bad.any():
                count, first = self.not_finite.get(number, (0, self.seen + int(bad.nonzero()[0])))
                self.not_finite[number] = count + int(bad.sum()), first

    def _take(self, inputs: Arrays, outputs: list[np.ndarray]) -> None:
        self._outputs = self._outputs or [[] for _ in outputs]
        for name, array in inputs.items():
            self._inputs.setdefault(name, []).append(array.copy())
        for i, array in enumerate(outputs):
            self._outputs[i].append(array.copy())


def in_batches(rows: Arrays, size: int) -> Iterator[Arrays]:
    """Yield the rows in batches of a size, the last of what remains."""
    for start in range(0, len(next(iter(rows.values()))), size):
        yield {name: array[start : start + size] for name, array in rows.items()}


@contextlib.contextmanager
def recording(module: nn.Module, limit: int) -> Iterator[Rows]:
    """Record the rows that go through the module's forward in the block."""
    rows = Rows(limit)
    forward = module.forward

    def recorded(*args: Any, **kwargs: Any) -> Any:
        # Copies: forward may write into its inputs, as layers with inplace=True do.
        given = bind(forward, args, kwargs)
        rows.given = {tensor.data_ptr() for tensor in given.values()}
        inputs = {name: tensor.clone() for name, tensor in given.items()}
        before = _state(module)
        output = forward(*args, **kwargs)
        _check_unchanged(module, before)
        rows.add(inputs, output)
        return output

    with replaced(module, "forward", recorded):
        yield rows


@contextlib.contextmanager
def replaced(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Let a function take the place of the module's method of this name in the block."""
    own = module.__dict__.get(name)  # some modules carry one of their own besides their class's
    module.__dict__[name] = function
    try:
        yield
    finally:
        if own is None:
            del module.__dict__[name]
        else:
            module.__dict__[name] = own


def bind(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors that a call gives to forward, by parameter name.

    Raises:
        SignatureError: an argument is no tensor.
    """
    bound = inspect.signature(forward).bind(*args, **kwargs).arguments
    for name, value in bound.items():
        if not isinstance(value, torch.Tensor):
            raise SignatureError(
                f"forward was given {name}={type(value).__name__}; an exported graph takes tensors alone. "
                "Pass tensors by name, and settings to the constructor."
            )
    return bound


def _state(module: nn.Module) -> dict[str, tuple[torch.Tensor, int]]:
    """Each tensor of the module, and how often it was written into."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: (tensor, tensor._version) for name, tensor in tensors.items() if not tensor.is_inference()}  # noqa: SLF001


def _check_unchanged(module: nn.Module, before: dict[str, tuple[torch.Tensor, int]]) -> None:
    after = _state(module)
    for name, (tensor, version) in before.items():
        if name in after and (after[name][0] is not tensor or after[name][1] != version):
            raise SignatureError(
                f"forward of {type(module).__name__} changes {name!r} in evaluation mode; a graph keeps nothing from "
                "one call to the next, so it would answer otherwise. Change it in training mode alone, `if "
                "self.training`, or outside of forward."
            )


def _register(kind: type) -> None:
    """Let torch look into outputs that are dataclasses, here and when the module is converted."""
    if dataclasses.is_dataclass(kind) and kind not in pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(kind)


def _check_batch(inputs: dict[str, torch.Tensor], leaves: list[Any]) -> int:
    if not leaves:
        raise SignatureError("forward gives no tensor; an exported graph needs an output.")
    tensors = {**inputs, **{f"output {i}": leaf for i, leaf in enumerate(leaves)}}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            raise SignatureError(f"{name} of forward is no tensor with a batch dimension; an exported graph needs one.")
        if value.dtype not in _KNOWN:
            raise SignatureError(
                f"{name} of forward is {value.dtype}, which a request cannot carry: convert it in forward."
            )
        if 0 in value.shape[1:]:
            raise SignatureError(
                f"{name} of forward has the shape {list(value.shape)}, which holds no number: leave it out."
            )
    rows: dict[str, int] = {name: value.shape[0] for name, value in tensors.items()}
    if len(set(rows.values())) != 1:
        raise SignatureError(f"The first dimension of all inputs and outputs must be the batch; found {rows}.")
    return next(iter(rows.values()))


def digests(inputs: list[np.ndarray]) -> list[bytes]:
    """Return one for each row, over all its inputs."""
    found = []
    for row in zip(*inputs, strict=True):
        digest = hashlib.blake2b(digest_size=16)
        for array in row:
            digest.update(np.ascontiguousarray(array).tobytes())
        found.append(digest.digest())
    return found
