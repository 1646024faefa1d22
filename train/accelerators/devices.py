"""How batches get to a device."""

from __future__ import annotations

import copy
from typing import Any

import torch


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with its tensors on `device`."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        moved = {key: to_device(value, device) for key, value in batch.items()}
        if type(batch) is dict:
            return moved
        again = copy.copy(batch)
        again.update(moved)
        return again
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    if hasattr(batch, "to"):  # what a tokenizer returns, or a class of the user's
        return batch.to(device)
    return batch
