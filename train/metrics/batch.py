"""How many rows a batch has."""

from __future__ import annotations

from typing import Any

import torch


def rows_of(batch: Any) -> int:
    """Return the number of rows of a batch: the length of its first tensor; 1 where there is none."""
    stack = [batch]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            return item.shape[0] if item.ndim else 1
        if isinstance(item, dict):
            stack.extend(reversed(list(item.values())))
        elif isinstance(item, list | tuple):
            stack.extend(reversed(item))
    return 1
