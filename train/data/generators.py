"""Every random generator behind the rows: the three global ones, and those that a dataset or a sampler owns.

An augmentation may draw from `random`, numpy, torch, or from a generator that it keeps in an attribute. A position in
the data is exact only with the states of all of them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from shipline.train.seed import rng_state, set_rng_state

_DEPTH = 8
_LONGEST = 256  # a longer list holds rows, not transforms
_PLAIN = (str, bytes, int, float, bool, complex, type(None), torch.Tensor, np.ndarray, type)


class Generators:
    """The global generators and those that some objects own, which are looked for once."""

    def __init__(self, *owners: Any) -> None:
        self._own = list(_owned(owners))

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all as plain data: numbers, strings, bytes."""
        return {"global": rng_state(), "own": self.own_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put all of them back."""
        set_rng_state(state["global"])
        self.load_own_state(state["own"])

    def own_state(self) -> list[Any]:
        """Return the states of those owned, in the order in which they were found."""
        return [_state(generator) for generator in self._own]

    def load_own_state(self, states: list[Any]) -> None:
        """Put those owned back; what had no state then is left as it is."""
        for generator, state in zip(self._own, states, strict=False):
            _set_state(generator, state)


def _owned(owners: tuple[Any, ...]) -> Iterator[Any]:
    """Walk attributes, lists and dicts, nearest first; each object once."""
    seen: set[int] = set()
    level = list(owners)
    for _ in range(_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, _PLAIN) or id(item) in seen:
                continue
            seen.add(id(item))
            if isinstance(item, torch.Generator | random.Random | np.random.Generator | np.random.RandomState):
                yield item
            else:
                below.extend(_parts(item))
        level = below


def _parts(item: Any) -> list[Any]:
    if isinstance(item, list | tuple | dict):
        parts = list(item.values()) if isinstance(item, dict) else list(item)
        return parts if len(parts) <= _LONGEST else []
    return list(getattr(item, "__dict__", {}).values())


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().numpy().tobytes()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return _as_bytes(generator.get_state(legacy=False))
    return _as_bytes(generator.bit_generator.state)


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(_as_arrays(state))
    else:
        generator.bit_generator.state = _as_arrays(state)


def _as_bytes(state: Any) -> Any:
    """Numpy's arrays as (dtype, bytes), which can be compared."""
    if isinstance(state, dict):
        return {key: _as_bytes(value) for key, value in state.items()}
    return (str(state.dtype), state.tobytes()) if isinstance(state, np.ndarray) else state


def _as_arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _as_arrays(value) for key, value in state.items()}
    return np.frombuffer(state[1], state[0]) if isinstance(state, tuple) else state
