"""What objects and tensors were, to be put back as if nothing had happened since."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

_DEPTH = 5  # an optimizer's state: its attributes, by parameter, by name, the tensor
_LONGEST = 1024  # a longer list holds rows; it is refilled, but what it holds is not looked at


class Snapshot:
    """Attributes of objects, with the dicts, lists and sets in them, and the values of tensors, kept on the CPU.

    Args:
        owners: objects with attributes; of other objects behind them only the reference is kept.
        tensors: keep the values of tensors, too.
    """

    def __init__(self, *owners: object, tensors: bool = True) -> None:
        self._tensors = tensors
        self._seen: set[int] = set()
        self._undo: list[Callable[[], None]] = []
        for owner in owners:
            self._take(vars(owner), 0)
        self._seen.clear()

    def restore(self) -> None:
        """Put everything back, in place."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def _take(self, value: Any, depth: int) -> None:
        if depth > _DEPTH or id(value) in self._seen:
            return
        if isinstance(value, torch.Tensor):
            self._seen.add(id(value))
            if self._tensors:
                self._take_tensor(value, depth)
        elif isinstance(value, dict):
            self._seen.add(id(value))
            self._undo.append(partial(_refill_dict, value, dict(value)))
            self._take_all(list(value.values()), depth + 1)
        elif isinstance(value, list | deque | set):
            self._seen.add(id(value))
            self._undo.append(partial(_refill, value, list(value)))
            self._take_all(list(value), depth + 1)
        elif isinstance(value, tuple):
            self._take_all(list(value), depth + 1)

    def _take_all(self, values: list[Any], depth: int) -> None:
        for value in values if len(values) <= _LONGEST else [v for v in values if isinstance(v, torch.Tensor | dict)]:
            self._take(value, depth)

    def _take_tensor(self, tensor: torch.Tensor, depth: int) -> None:
        grad = tensor.grad if tensor.is_leaf else None
        self._undo.append(partial(_put_back, tensor, _copied(tensor), tensor.requires_grad, grad))
        if grad is not None:
            self._take(grad, depth)


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _put_back(tensor: torch.Tensor, value: torch.Tensor, requires_grad: bool, grad: torch.Tensor | None) -> None:
    tensor.copy_(value)
    if tensor.is_leaf:
        tensor.grad = grad
        if tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)


def _refill_dict(target: dict[Any, Any], items: dict[Any, Any]) -> None:
    target.clear()
    target.update(items)


def _refill(target: Any, items: list[Any]) -> None:
    target.clear()
    (target.update if isinstance(target, set) else target.extend)(items)
