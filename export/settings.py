"""The serving settings that are best on this machine: how many rows a batch, how many threads each."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays
from shipline.backends.cores import cores
from shipline.export.candidate import Candidate
from shipline.export.latency import batch_of
from shipline.export.runtime import Runtime

ROUNDS = 3
MIN_ROUND_S = 0.01
#: What reaches this share of the best throughput is as good. Of these the largest batch is preferred: servers join what
#: waits already, so nobody waits for it to fill, and each batch costs them as much as many a small model's rows.
ENOUGH = 0.95


@dataclass(frozen=True)
class Point:
    """Rows a second with all cores at work: `cores // threads` batches at once, each with so many threads."""

    batch: int
    threads: int
    rows_per_second: float


def tune(candidate: Candidate) -> tuple[ServingSettings, list[Point]]:
    """Return the settings for servers to start from, and what was measured.

    All are measured in turn, several times, so that a machine whose speed drifts is equally unfair to all.
    """
    plain = candidate.plan.serving(candidate.max_batch_size)
    rows, found = candidate.trained.usual, dict[tuple[int, int], float]()
    batches = _powers(2, candidate.max_batch_size)
    for threads in _powers(4, cores()):
        settings = plain.model_copy(update={"threads": threads})
        runtime = Runtime(candidate.file.read_bytes(), settings, candidate.plan.backend)
        try:
            for batch, rate in _rates(runtime, rows, batches, cores() // threads).items():
                found[batch, threads] = rate
        finally:
            runtime.close()
    best = max(found.values())
    batch, threads = max((place for place, rate in found.items() if rate >= ENOUGH * best), key=_most_joined)
    points = [Point(batch, threads, rate) for (batch, threads), rate in sorted(found.items())]
    return plain.model_copy(update={"threads": threads, "preferred_batch_size": batch}), points


def _most_joined(place: tuple[int, int]) -> tuple[int, int]:
    """The most rows; then the fewest threads."""
    batch, threads = place
    return batch, -threads


def _powers(base: int, last: int) -> list[int]:
    """1, the powers of the base below the last, and the last."""
    return sorted({1, *(base**i for i in range(1, last.bit_length()) if base**i < last), last})


def _rates(runtime: Runtime, rows: Arrays, batches: list[int], at_once: int) -> dict[int, float]:
    inputs = {batch: batch_of(rows, batch) for batch in batches}
    taken: dict[int, list[float]] = {batch: [] for batch in batches}
    with ThreadPoolExecutor(at_once) as callers:
        for _ in range(ROUNDS):
            for batch in batches:
                taken[batch].append(batch * _calls_per_second(runtime, inputs[batch], callers, at_once))
    return {batch: statistics.median(rates) for batch, rates in taken.items()}


def _calls_per_second(runtime: Runtime, inputs: Arrays, callers: ThreadPoolExecutor, at_once: int) -> float:
    def call(until: float) -> int:
        done = 0
        while not done or time.perf_counter() < until:
            runtime.run(inputs)
            done += 1
        return done

    began = time.perf_counter()
    done = sum(callers.map(call, [began + MIN_ROUND_S] * at_once))
    return done / (time.perf_counter() - began)
