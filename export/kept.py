"""Answers that are asked for again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils import _pytree as pytree

Answer = TypeVar("Answer")

ROOM_BYTES = 32 << 20


class Kept(Generic[Answer]):
    """Answers to what is asked more than once: as many are kept as `ROOM_BYTES` has room for."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Answer] = {}
        self._left = ROOM_BYTES

    def answer(self, question: Hashable, make: Callable[[], Answer]) -> Answer:
        """Return what is known, else what is made."""
        if question in self._known:
            return self._known[question]
        found = make()
        size = sum(getattr(leaf, "nbytes", 0) for leaf in pytree.tree_leaves(found))
        if size > self._left:
            return found
        self._left -= size
        self._known[question] = pytree.tree_map(_alone, found)
        return self._known[question]


def _alone(leaf: Any) -> Any:
    """What is kept is no view of something larger."""
    if isinstance(leaf, torch.Tensor):
        return leaf.clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf
