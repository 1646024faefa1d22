"""How long graphs take, side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from shipline.backends.base import Arrays
from shipline.export.runtime import Runtime

ROUNDS = 30
MIN_ROUND_S = 2e-3
MAX_TOTAL_S = 4.0
WARM_ENOUGH_MS = 20.0  # a run that takes so long tells enough by itself
#: Rounds after which a graph that was slower than the first in all of them, by this much, is timed no more.
ENOUGH_ROUNDS, CLEARLY_SLOWER = 3, 1.25


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch: median, and the range that holds four in five rounds; all rounds for the plots."""

    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds_ms: tuple[float, ...]


def measure(runtimes: dict[str, Runtime], rows: Arrays, batch: int) -> dict[str, Latency]:
    """Time each runtime on the same batch, in turn, so that a machine whose speed drifts is equally unfair to all.

    They are compared with the first; once all others are clearly slower, nobody needs to know how much.
    """
    inputs = batch_of(rows, batch)
    repeats = {name: _repeats(runtime, inputs) for name, runtime in runtimes.items()}
    times: dict[str, list[float]] = {name: [] for name in runtimes}
    deadline = time.perf_counter() + MAX_TOTAL_S
    for done in range(ROUNDS):
        if done >= 5 and time.perf_counter() > deadline:
            break
        if done == ENOUGH_ROUNDS and _slower(list(times.values())):
            break
        for name, runtime in runtimes.items():
            times[name].append(_once(runtime, inputs, repeats[name]))
    return {name: _summary(batch, taken) for name, taken in times.items()}


def batch_of(rows: Arrays, batch: int) -> Arrays:
    """Return a batch of the first rows; where there are fewer, they are repeated."""
    return {name: np.resize(array, (batch, *array.shape[1:])) for name, array in rows.items()}


def _repeats(runtime: Runtime, inputs: Arrays) -> int:
    """How many runs make a round long enough to time; warms up, too."""
    if (first := _once(runtime, inputs, 1)) > WARM_ENOUGH_MS:
        return 1
    return max(1, int(MIN_ROUND_S * 1e3 / max(min(first, _once(runtime, inputs, 3)), 1e-4)))


def _slower(times: list[list[float]]) -> bool:
    """Whether all but the first took longer than it in every round, and clearly so."""
    first, *others = times
    return bool(others) and min(map(min, others)) > CLEARLY_SLOWER * max(first)


def _once(runtime: Runtime, inputs: Arrays, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        runtime.run(inputs)
    return (time.perf_counter() - began) / repeats * 1e3


def _summary(batch: int, taken: list[float]) -> Latency:
    p10, median, p90 = np.percentile(taken, (10, 50, 90)).tolist()
    return Latency(batch=batch, median_ms=median, p10_ms=p10, p90_ms=p90, rounds_ms=tuple(taken))
