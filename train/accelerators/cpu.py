"""The machine's own processor."""

from __future__ import annotations

from typing import Any

import torch

from shipline.errors import MissingExtraError
from shipline.train.accelerators.base import Accelerator


class CpuAccelerator(Accelerator):
    """The CPU; every worker computes on the same one."""

    def is_available(self) -> bool:
        """It always is."""
        return True

    def device_count(self) -> int:
        """Return 1: PyTorch has one CPU device, whatever its cores."""
        return 1

    def device(self, local_rank: int) -> torch.device:
        """Return the CPU."""
        return torch.device("cpu")

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        """Return the shares of processor, memory and swap in use, in percent."""
        try:
            import psutil
        except ModuleNotFoundError as error:
            raise MissingExtraError("Figures of the CPU need psutil. Run: pip install 'shipline[train]'") from error
        return {
            "cpu_percent": psutil.cpu_percent(),
            "cpu_vm_percent": psutil.virtual_memory().percent,
            "cpu_swap_percent": psutil.swap_memory().percent,
        }

    @property
    def ray_resource(self) -> str:
        """Ray counts cores."""
        return "CPU"
