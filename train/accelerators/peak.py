"""What accelerators can compute at best, by their makers' data sheets."""

from __future__ import annotations

import re

import torch

#: Dense FLOPs a second by chip: of float64, float32 outside of tensor cores, and half precision. Of the chips whose
#: words all stand in a device's name the first is taken. Source: NVIDIA's data sheet of each.
_PEAKS: dict[str, tuple[float, float, float]] = {
    "h200 nvl": (30e12, 60e12, 835e12),
    "h200": (34e12, 67e12, 989e12),
    "h100 nvl": (30e12, 60e12, 835e12),
    "h100 pcie": (26e12, 51e12, 756e12),
    "h100": (34e12, 67e12, 989e12),
    "a100": (9.7e12, 19.5e12, 312e12),
    "a40": (0.58e12, 37.4e12, 149.7e12),
    "l40s": (1.4e12, 91.6e12, 362e12),
    "l40": (1.4e12, 90.5e12, 181e12),
    "l4": (0.47e12, 30.3e12, 121e12),
    "v100": (7.8e12, 15.7e12, 125e12),
    "t4": (0.25e12, 8.1e12, 65e12),
}
_WITHOUT_TF32 = ("v100", "t4")
_HALF = ("16-true", "bf16-true", "16-mixed", "bf16-mixed")


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Return what the device can do in a second in this precision; None where that is not known."""
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_of(torch.cuda.get_device_name(device), precision, tf32)


def peak_of(device_name: str, precision: str, tf32: bool = False) -> float | None:
    """Return what a device of that name can do; `tf32`: whether float32 is multiplied by tensor cores."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    chip = next((chip for chip in _PEAKS if words.issuperset(chip.split())), None)
    if chip is None:
        return None
    double, single, half = _PEAKS[chip]
    if tf32 and chip not in _WITHOUT_TF32:
        single = half / 2
    return {"64-true": double, "32-true": single, **dict.fromkeys(_HALF, half)}.get(precision)
