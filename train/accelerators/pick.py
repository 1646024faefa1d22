"""From the name of an accelerator to the one that this machine has."""

from __future__ import annotations

import torch

from shipline.errors import ConfigError
from shipline.plugins import known, load
from shipline.train.accelerators.base import Accelerator


def pick_accelerator(wanted: str | Accelerator) -> Accelerator:
    """Return the accelerator; "auto" is the best that this machine has.

    Raises:
        ConfigError: there is none of that name, or this machine has none.
    """
    if wanted == "auto":
        return next(found for name in _by_preference() if (found := _made(name)).is_available())
    accelerator = wanted if isinstance(wanted, Accelerator) else _made(wanted)
    if not accelerator.is_available():
        have = [name for name in known("accelerator") if _made(name).is_available()]
        raise ConfigError(
            f"accelerator={accelerator.name!r}, but this machine has {', '.join(have)}: choose one of them, or 'auto'."
        )
    return accelerator


def pick_device(wanted: str | Accelerator) -> torch.device:
    """Return the device of this process; ConfigError as `pick_accelerator`."""
    return pick_accelerator(wanted).device(0)


def _made(name: str) -> Accelerator:
    accelerator: Accelerator = load("accelerator", name)(name)
    return accelerator


def _by_preference() -> list[str]:
    """What plug-ins bring first, the CPU last."""
    first = [name for name in known("accelerator") if name not in ("gpu", "cuda", "mps", "xpu", "cpu")]
    return [*first, "gpu", "cpu"]
