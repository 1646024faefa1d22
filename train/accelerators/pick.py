"""From the name of an accelerator to the one that this machine has."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch

from shipline.errors import ConfigError, UnknownNameError
from shipline.plugins import known, load
from shipline.train.accelerators.base import Accelerator

logger = logging.getLogger(__name__)

_OWN = ("gpu", "cuda", "mps", "xpu", "cpu")
_OUT_OF_TREE = ("tpu", "hpu", "ipu", "npu")


def pick_accelerator(wanted: str | Accelerator) -> Accelerator:
    """Return the accelerator; "auto" is the best that this machine has.

    Raises:
        ConfigError: there is none of that name, or this machine has none.
    """
    if wanted == "auto":
        return next(_available((*_plugins(), "gpu", "cpu")))
    accelerator = wanted if isinstance(wanted, Accelerator) else _made(wanted)
    if not accelerator.is_available():
        have = ", ".join(found.name for found in _available((*_plugins(), *_OWN)))
        raise ConfigError(
            f"accelerator={accelerator.name!r}, but this machine has {have}: choose one of them, or 'auto'."
        )
    return accelerator


def ray_resource(wanted: str | Accelerator) -> str:
    """Return what Ray calls such devices, also where this machine has none: it may only drive workers elsewhere.

    Raises:
        ConfigError: there is none of that name.
    """
    if wanted == "auto":
        return pick_accelerator(wanted).ray_resource
    return (wanted if isinstance(wanted, Accelerator) else _made(wanted)).ray_resource


def pick_device(wanted: str | Accelerator) -> torch.device:
    """Return the device of this process; ConfigError as `pick_accelerator`."""
    return pick_accelerator(wanted).device(0)


def _made(name: str) -> Accelerator:
    try:
        accelerator: Accelerator = load("accelerator", name)(name)
    except UnknownNameError as error:
        if name not in _OUT_OF_TREE:
            raise
        raise ConfigError(f"{error} A {name.upper()} is a plug-in's: docs/extending.md shows one.") from error
    return accelerator


def _plugins() -> list[str]:
    return [name for name in known("accelerator") if name not in _OWN]


def _available(names: tuple[str, ...]) -> Iterator[Accelerator]:
    """Those that this machine has; a plug-in that is broken must not stop those who never asked for it."""
    for name in names:
        try:
            accelerator = _made(name)
            if accelerator.is_available():
                yield accelerator
        except ImportError as error:
            logger.warning("The accelerator %r is passed over: %s", name, error)
