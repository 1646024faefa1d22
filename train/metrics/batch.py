"""How many rows a batch has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch


def rows_of(batch: Any) -> int:
    """Return the number of rows of a batch: the length of its first tensor; 1 where there is none."""
    stack = [batch]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            return item.shape[0] if item.ndim else 1
        if isinstance(item, list | tuple):
            stack.extend(reversed(item))
        elif isinstance(item, Mapping):  # what a tokenizer returns is one, and no dict
            stack.extend(reversed(list(item.values())))
        elif dataclasses.is_dataclass(item):
            stack.extend(getattr(item, field.name) for field in reversed(dataclasses.fields(item)))
    return 1
