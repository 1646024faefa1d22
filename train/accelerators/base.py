"""What every accelerator is: a kind of device that PyTorch, or a plug-in of it, computes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch


class Accelerator(ABC):
    """A kind of device. Names are PyTorch Lightning's; a new one is a class like this, found by its name.

    Args:
        name: by which it was asked for.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def is_available(self) -> bool:
        """Whether this machine has one."""

    @abstractmethod
    def device_count(self) -> int:
        """Return how many this machine has."""

    @abstractmethod
    def device(self, local_rank: int) -> torch.device:
        """Return the device of the worker with this number on this machine."""

    def setup_device(self, device: torch.device) -> None:  # noqa: B027 -- there may be nothing to do
        """Make `device` the one that this process uses."""

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        """Return figures such as the memory in use, by name."""
        return {}

    @property
    def ray_resource(self) -> str:
        """What Ray calls such a device, and counts."""
        return "GPU"

    def teardown(self) -> None:  # noqa: B027
        """Give back what was cached on the devices."""
