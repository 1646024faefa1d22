"""Which devices the workers of a run compute on."""

from shipline.train.accelerators.base import Accelerator
from shipline.train.accelerators.cpu import CpuAccelerator
from shipline.train.accelerators.pick import pick_accelerator, pick_device, ray_resource
from shipline.train.accelerators.torch import TorchAccelerator

__all__ = ["Accelerator", "CpuAccelerator", "TorchAccelerator", "pick_accelerator", "pick_device", "ray_resource"]
