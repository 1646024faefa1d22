"""One seed for every generator, and their states as plain data."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from shipline.errors import ConfigError

_seed: int | None = None


def seed_everything(seed: int) -> int:
    """Seed Python's, numpy's and torch's generators; runs started afterwards record the seed and give it to workers.

    Raises:
        ConfigError: the seed is no number from 0 to 2**32 - 1.
    """
    global _seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed!r}; choose one from 0 to 2**32 - 1.")
    _seed = seed
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def current_seed() -> int | None:
    """Return the seed last given to `seed_everything`, or None."""
    return _seed


def rng_state() -> dict[str, Any]:
    """Return the state of all generators as a tree of plain data and tensors."""
    version, keys, gauss = random.getstate()
    name, numbers, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": {"version": version, "keys": list(keys), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(np.asarray(numbers, np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators back into a state of `rng_state`."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["keys"]), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def isolate_rng() -> Iterator[None]:
    """Leave all generators as they were, whatever the block draws from them."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
