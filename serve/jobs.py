"""Requests that wait for a backend: in which order, and how many may."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np

from shipline.backends.base import Arrays

FIRST, NORMAL, LAST = 1, 2, 3

Shapes = tuple[tuple[int, ...], ...]
Lane = dict[Hashable, deque["Job"]]


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a request waits: how soon it goes, whose it is, and after how many seconds nobody wants it.

    `trace` is who wants to know what becomes of it.
    """

    priority: int = NORMAL
    client: Hashable = None
    timeout_s: float | None = None
    trace: object = None


@dataclass(slots=True, eq=False)
class Job:
    """The rows of one request, waiting or running."""

    inputs: Arrays
    rows: int
    future: asyncio.Future[Arrays]
    queued_at: float
    deadline: float
    terms: Terms
    size: int

    @property
    def shapes(self) -> Shapes:
        """What the rows of a batch must have in common."""
        return tuple(array.shape[1:] for array in self.inputs.values())


class Waiting:
    """Jobs in the order in which they go: by priority; of one priority, clients in turn; of one client, by age.

    Jobs are kept apart by the shapes of their rows, since only equal ones make a batch; the shape whose next job is the
    most urgent, then the oldest, goes first.
    """

    def __init__(self) -> None:
        self._buckets: dict[Shapes, tuple[Lane, Lane, Lane]] = {}
        self.rows = 0
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._buckets)

    def __iter__(self) -> Iterator[Job]:
        for lanes in self._buckets.values():
            for lane in lanes:
                for jobs in lane.values():
                    yield from jobs

    def add(self, job: Job) -> None:
        """Let a job wait."""
        lanes = self._buckets.get(job.shapes)
        if lanes is None:
            lanes = self._buckets[job.shapes] = ({}, {}, {})
        lane = lanes[job.terms.priority - FIRST]
        jobs = lane.get(job.terms.client)
        if jobs is None:
            lane[job.terms.client] = deque((job,))
        else:
            jobs.append(job)
        self.rows += job.rows
        self.size += job.size

    def take(self, room: int) -> list[Job]:
        """Remove and return the next jobs, of rows of one shape, as long as each fits into what room is left.

        The first is always taken: a request may have more rows than are joined from several.
        Jobs whose callers went away are dropped on the way.
        """
        taken: list[Job] = []
        while self._buckets and not taken:
            shapes = self._next_shapes()
            for lane in self._buckets[shapes]:
                room = self._take_from(lane, room, taken)
            if not any(self._buckets[shapes]):
                del self._buckets[shapes]
        return taken

    def remove(self, job: Job) -> None:
        """Drop a job, if it still waits."""
        lanes = self._buckets.get(job.shapes)
        lane: Lane = lanes[job.terms.priority - FIRST] if lanes else {}
        jobs = lane.get(job.terms.client)
        if lanes is None or jobs is None or job not in jobs:
            return
        self._forget(job)
        jobs.remove(job)
        if not jobs:
            del lane[job.terms.client]
        if not any(lanes):
            del self._buckets[job.shapes]

    def _take_from(self, lane: Lane, room: int, taken: list[Job]) -> int:
        """Move jobs from a lane to `taken`, one of each client in turn; return the room that is left."""
        while lane and room > 0:
            client, jobs = next(iter(lane.items()))
            job = jobs[0]
            # Whoever is next may not be passed by smaller ones for ever; nor wait for ever, being larger than a batch.
            if job.rows > room and taken and not job.future.done():
                return 0
            self._forget(jobs.popleft())
            del lane[client]
            if jobs:
                lane[client] = jobs  # at the end of the turn
            if not job.future.done():
                room -= job.rows
                taken.append(job)
        return room

    def _forget(self, job: Job) -> None:
        self.rows -= job.rows
        self.size -= job.size

    def _next_shapes(self) -> Shapes:
        if len(self._buckets) == 1:
            return next(iter(self._buckets))
        return min(self._buckets, key=lambda shapes: _urgency(self._buckets[shapes]))


def size_of(inputs: Arrays) -> int:
    """Return the bytes that the rows take in memory."""
    return sum(
        array.nbytes + (sum(map(len, array.ravel())) if array.dtype == np.object_ else 0) for array in inputs.values()
    )


def _urgency(lanes: tuple[Lane, Lane, Lane]) -> tuple[int, float]:
    number = next(number for number, lane in enumerate(lanes) if lane)
    return number, next(iter(lanes[number].values()))[0].queued_at
