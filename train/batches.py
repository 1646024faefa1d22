"""What a batch may be made of: tensors in lists, tuples, mappings and dataclasses, however deep."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


def mapped(batch: Any, is_leaf: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """Return the batch with each leaf changed; containers are new ones of their classes, the rest is as it was.

    Args:
        batch: of any form.
        is_leaf: says of an item, containers included, whether it is to be changed.
        change: returns what takes its place.
    """
    if is_leaf(batch):
        return change(batch)
    if isinstance(batch, Mapping):
        return _again(batch, {key: mapped(value, is_leaf, change) for key, value in batch.items()})
    if isinstance(batch, list | tuple):
        items = [mapped(value, is_leaf, change) for value in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        again = copy.copy(batch)
        for field in dataclasses.fields(batch):  # past a constructor of its own, and past frozen=True
            object.__setattr__(again, field.name, mapped(getattr(batch, field.name), is_leaf, change))
        return again
    return batch


def _again(batch: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """The items in a mapping like `batch`: what a tokenizer returns is one that knows more than its items."""
    if type(batch) is dict or not hasattr(batch, "update"):
        return items
    again: Any = copy.copy(batch)
    again.update(items)
    return again
