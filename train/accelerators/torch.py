"""What `torch.accelerator` finds: cuda, mps, xpu, or a device that a plug-in of PyTorch brings."""

from __future__ import annotations

from typing import Any

import torch

from shipline.train.accelerators.base import Accelerator


class TorchAccelerator(Accelerator):
    """The accelerator that PyTorch was built for; "gpu" is whichever it is.

    Source: torch.accelerator (https://docs.pytorch.org/docs/stable/accelerator.html).
    """

    @property
    def kind(self) -> str | None:
        """Its device type, None where there is none."""
        found = torch.accelerator.current_accelerator(check_available=True)
        return None if found is None else found.type

    def is_available(self) -> bool:
        """Whether this machine has it."""
        return self.kind is not None and self.name in ("gpu", self.kind)

    def device_count(self) -> int:
        """Return how many this machine has."""
        return torch.accelerator.device_count() if self.is_available() else 0

    def device(self, local_rank: int) -> torch.device:
        """Return the device with the worker's number."""
        assert self.kind is not None
        return torch.device(self.kind, local_rank % max(1, self.device_count()))

    def setup_device(self, device: torch.device) -> None:
        """Make `device` the current one."""
        if device.index is not None and device.type != "mps":
            torch.accelerator.set_device_index(device.index)

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        """Return what the device's allocator counts: bytes, and of cuda and xpu calls, by PyTorch's names for them."""
        if device.type == "mps":
            return {
                "allocated_bytes": torch.mps.current_allocated_memory(),
                "driver_allocated_bytes": torch.mps.driver_allocated_memory(),
                "recommended_max_bytes": torch.mps.recommended_max_memory(),
            }
        stats: dict[str, Any] = dict(torch.accelerator.memory_stats(device))
        return stats

    def teardown(self) -> None:
        """Give cached memory back to the device."""
        (torch.mps if self.kind == "mps" else torch.accelerator).empty_cache()
