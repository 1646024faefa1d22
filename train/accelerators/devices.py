"""How batches get to a device."""

from __future__ import annotations

from typing import Any

import torch

from shipline.train.batches import mapped

#: Where a copy that nobody waits for may be read before it is there.
_WAITED_FOR = ("cpu", "mps")


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with all that can be moved on `device`: tensors, and what has a `to` of its own."""
    late = device.type not in _WAITED_FOR

    def move(item: Any) -> Any:
        return item.to(device, non_blocking=late) if isinstance(item, torch.Tensor) else item.to(device)

    return mapped(batch, _can_move, move)


def _can_move(item: Any) -> bool:
    return hasattr(item, "to")
