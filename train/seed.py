"""One seed for every generator, and their states as plain data."""

from __future__ import annotations

import contextlib
import os
import random
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from shipline.errors import ConfigError

_seed: int | None = None
_LARGEST = 2**32 - 1


def seed_everything(seed: int | None = None, workers: bool = True, verbose: bool = True) -> int:
    """Seed Python's, numpy's and torch's generators; runs started afterwards record the seed and give it to workers.

    Args:
        seed: from 0 to 2**32 - 1; default: what `PL_GLOBAL_SEED` says, else 0.
        workers: taken for Lightning's sake: a DataLoader's workers are seeded by PyTorch, each differently.
        verbose: taken for Lightning's sake: nothing is printed.

    Raises:
        ConfigError: the seed is no such number.
    """
    global _seed
    if seed is None:
        text = os.environ.get("PL_GLOBAL_SEED", "0")
        seed = int(text) if text.isdecimal() else -1
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST:
        raise ConfigError(f"seed is {seed!r}; choose one from 0 to 2**32 - 1.")
    _seed = seed
    _seed_generators(seed)
    return seed


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def current_seed() -> int | None:
    """Return the seed last given to `seed_everything`, or None."""
    return _seed


def rng_state() -> dict[str, Any]:
    """Return the state of all global generators as numbers and bytes."""
    version, keys, gauss = random.getstate()
    name, numbers, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": (version, array("I", keys).tobytes(), gauss),
        "numpy": (name, np.asarray(numbers, np.uint32).tobytes(), position, has_gauss, cached),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [device.numpy().tobytes() for device in torch.cuda.get_rng_state_all()]
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators back into a state of `rng_state`."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(array("I", keys)), gauss))
    name, numbers, *rest = state["numpy"]
    np.random.set_state((name, np.frombuffer(numbers, np.uint32), *rest))
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([_tensor(device) for device in state["cuda"]])


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@contextlib.contextmanager
def isolate_rng(seed: int | None = None) -> Iterator[None]:
    """Leave all generators as they were, whatever the block draws from them; with a seed, always the same."""
    state = rng_state()
    try:
        if seed is not None:
            _seed_generators(seed)
        yield
    finally:
        set_rng_state(state)
