"""Doubles for the serving tests."""

from __future__ import annotations

import threading
from typing import Self

import numpy as np

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.serve.batcher import BatcherStats

POISON = -1.0
WAIT_S = 30.0


class PoisonError(Exception):
    """What the identity backend raises for a poison row."""


class IdentityBackend(Backend):
    """Gives back what it got, under the names in the model's bytes: `b"x=y,u=v"` makes `y` of `x` and `v` of `u`.

    Remembers every batch. A row with POISON in it fails its whole batch, as a graph's would. While `gate` is closed,
    batches wait at it; `entered` tells that one does.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self.batches: list[Arrays] = []
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        return cls(dict(pair.split("=") for pair in model.decode().split(",")))

    def run(self, inputs: Arrays) -> Arrays:
        self.entered.set()
        assert self.gate.wait(WAIT_S), "nobody opened the gate"
        self.batches.append(inputs)
        if any((array == POISON).any() for array in inputs.values()):
            raise PoisonError("a row is poison")
        return {self._names[name]: np.array(array) for name, array in inputs.items()}

    def close(self) -> None:
        self.closed = True

    @property
    def sizes(self) -> list[int]:
        """How many rows each batch had."""
        return [len(next(iter(batch.values()))) for batch in self.batches]


class RecordedStats(BatcherStats):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, float, float]] = []

    def batch(self, rows: int, waited_s: float, took_s: float) -> None:
        self.told.append((rows, waited_s, took_s))
