"""Greedy batching: a free backend takes at once what waits, up to a batch; nobody waits for a timer.

A batch that fails is halved until the one request that is at fault stands alone, so innocent ones get their answers. A
caller that went away is left out, or its rows are thrown away; its batch-mates do not notice. A batch that ended its
backend's process runs again request by request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shipline.backends.base import Arrays
from shipline.serve.errors import BackendLostError, RequestError, late, overloaded
from shipline.serve.jobs import Job, Terms, Waiting, size_of
from shipline.serve.threads import Threads

logger = logging.getLogger(__name__)

Run = Callable[[Arrays], Arrays]
Outcome = Arrays | Exception
Traced = Callable[[list[Job], float, float], None]

TIMEOUT_S = 60.0
MAX_QUEUED_BYTES = 512 << 20
# Who would wait for longer is told at once: under overload, work for clients that have given up keeps others waiting.
MAX_WAIT_S = 5.0
_FEW_BATCHES = 4
_LATELY = 0.2


@dataclass(slots=True, eq=False)
class Batch:
    """Jobs that run together, and since when."""

    jobs: list[Job]
    began: float
    abandoned: bool = False

    @property
    def asked(self) -> list[Job]:
        """Those that somebody has asked for, and not the server itself."""
        return [job for job in self.jobs if job.terms is not OWN]


class BatcherStats:
    """Told of every batch; does nothing."""

    def batch(self, rows: int, waited_s: float, took_s: float) -> None:
        """Called after a batch: its rows, how long the oldest of them waited, how long the backend took."""


class Batcher:
    """Joins requests into batches for one backend.

    Args:
        run: runs a batch.
        max_batch: rows of the largest batch.
        max_queued: rows that may wait; more are refused.
        threads: batches that run at the same time, each in a thread; 0 runs them one by one on the event loop, which is
            right where a batch takes less time than handing it to a thread.
        stats: told of every batch.
        timeout_s: seconds after which nobody waits for an answer any more, at most; and after which a batch that still
            runs is taken for hung, and its thread replaced.
        delay_s: seconds that a batch which is not full waits for more; greedy, at 0.
        traced: told of every batch: its jobs, when it began and when it ended.
    """

    def __init__(
        self,
        run: Run,
        *,
        max_batch: int,
        max_queued: int,
        threads: int,
        stats: BatcherStats | None = None,
        timeout_s: float = TIMEOUT_S,
        delay_s: float = 0.0,
        traced: Traced | None = None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._stats = stats or BatcherStats()
        self._traced = traced
        self._timeout_s, self._delay_s = timeout_s, delay_s
        self._threads = Threads(threads) if threads else None
        self._waiting = Waiting()
        self._running: set[Batch] = set()
        self._free = self._count = max(threads, 1)
        self._row_s = 0.0  # that a row has taken lately, in one of so many threads
        self._sweep: asyncio.TimerHandle | None = None
        self._delayed: deque[asyncio.TimerHandle] = deque()  # of batches that are not full
        self._empty = asyncio.Event()
        self._ended = time.perf_counter()  # the last batch
        self._watched: asyncio.Event | None = None  # set when the next one does
        self.hung = 0

    async def submit(self, inputs: Arrays, rows: int, terms: Terms | None = None) -> Arrays:
        """Return the outputs for these rows.

        Args:
            inputs: name -> [rows, ...], checked against the signature.
            rows: 1 to `max_batch`.
            terms: on which they wait.

        Raises:
            RequestError: 503, too many rows or bytes wait already; 504, there was no answer in time.
            Exception: what the backend raised for these rows alone.
        """
        job = self.begin(inputs, rows, terms)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._waiting.remove(job)
            raise

    def begin(self, inputs: Arrays, rows: int, terms: Terms | None = None) -> Job:
        """Let these rows wait, and return the job that `submit` awaits; RequestError 503 where there is no room."""
        size = size_of(inputs)
        self.check_room(rows, size)
        return self._enter(inputs, rows, terms or _USUAL, size)

    def _enter(self, inputs: Arrays, rows: int, terms: Terms, size: int) -> Job:
        loop = asyncio.get_running_loop()
        now = time.perf_counter()
        deadline = now + min(terms.timeout_s or self._timeout_s, self._timeout_s)
        job = Job(inputs, rows, loop.create_future(), now, deadline, terms, size)
        self._waiting.add(job)
        if self._threads is not None:
            self._sweep_by(loop, deadline)
        if self._free:
            self._free -= 1
            # Not at once: requests that arrived in the same turn of the loop join this batch.
            if self._delay_s:
                self._delayed.append(loop.call_later(self._delay_s, self._delay_is_over, loop))
            else:
                loop.call_soon(self._next, loop)
        if self._delayed and self._waiting.rows >= self._max_batch:
            self._delayed.popleft().cancel()
            loop.call_soon(self._next, loop)
        return job

    async def responds(self, row: Arrays, recent_s: float, limit_s: float) -> bool:
        """Return whether batches end: one has within `recent_s`, or one does in time.

        Where no batch runs, this row waits for one, whether there is room or not; it is counted nowhere. One caller at
        a time.
        """
        if time.perf_counter() - self._ended < recent_s:
            return True
        self._watched = asyncio.Event()
        # Also beside others that wait: their callers may all go away.
        canary = None if self._running else self._enter(row, 1, OWN, 0)
        if canary is not None:  # that it ends is enough, an error is no news
            canary.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            await asyncio.wait_for(self._watched.wait(), limit_s)
        except TimeoutError:
            return False
        finally:
            self._watched = None
            if canary is not None:
                self.forget(canary)
        return True

    def check_room(self, rows: int = 1, size: int = 0) -> None:
        """Raise RequestError 503 where so much more may not wait: it would not fit, or not be served soon."""
        waiting = self._waiting
        soon = waiting.rows <= _FEW_BATCHES * self._max_batch or waiting.rows * self._row_s <= MAX_WAIT_S * self._count
        if not soon or waiting.rows + rows > self._max_queued or waiting.size + size > MAX_QUEUED_BYTES:
            raise overloaded("Too many requests are waiting. Try again in a second.")

    def forget(self, job: Job) -> None:
        """Drop a job that nobody waits for any more."""
        job.future.cancel()
        self._waiting.remove(job)

    async def drain(self) -> None:
        """Return when nothing waits or runs."""
        while self._waiting or self._running:
            self._empty.clear()
            await self._empty.wait()

    def close(self) -> None:
        """Give back the threads. Nothing may be waiting."""
        if self._sweep is not None:
            self._sweep.cancel()
        if self._threads is not None:
            self._threads.close()

    def _delay_is_over(self, loop: asyncio.AbstractEventLoop) -> None:
        self._delayed.popleft()
        self._next(loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take a batch and run it, here or in a thread."""
        now = time.perf_counter()
        jobs = [job for job in self._waiting.take(self._max_batch) if not _expired(job, now)]
        if not jobs:
            if self._waiting:
                loop.call_soon(self._next, loop)
            else:
                self._rest()
            return
        batch = Batch(jobs, now)
        self._running.add(batch)
        if self._threads is None:
            self._finish(loop, batch, execute(self._run, jobs))
        else:
            self._threads.call(
                lambda: execute(self._run, jobs), lambda outcomes: self._hand_over(loop, batch, outcomes)
            )

    def _hand_over(self, loop: asyncio.AbstractEventLoop, batch: Batch, outcomes: list[Outcome]) -> None:
        """Finish a batch that has run in a thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server ended, and nobody waits any more
            loop.call_soon_threadsafe(self._finish, loop, batch, outcomes)

    def _finish(self, loop: asyncio.AbstractEventLoop, batch: Batch, outcomes: list[Outcome]) -> None:
        if batch.abandoned:  # its thread has been replaced
            return
        self._running.discard(batch)
        for job, outcome in zip(batch.jobs, outcomes, strict=True):
            if job.future.done():
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        self._ended = now = time.perf_counter()
        if self._watched is not None:
            self._watched.set()
        self._count_batch(batch, now)
        if self._waiting:
            # Let the loop read and write sockets before the next batch.
            loop.call_soon(self._next, loop)
        else:
            self._rest()

    def _count_batch(self, batch: Batch, now: float) -> None:
        """Tell of a batch's requests, if it had any."""
        jobs = batch.asked
        if not jobs:
            return
        took, rows = now - batch.began, sum(job.rows for job in jobs)
        self._row_s += _LATELY * (took / rows - self._row_s)
        self._stats.batch(rows, batch.began - jobs[0].queued_at, took)
        if self._traced is not None:
            self._traced(jobs, batch.began, now)

    def _rest(self) -> None:
        self._free += 1
        if not self._running:
            self._empty.set()

    def _sweep_by(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """See to it that `_expire` is called at the deadline, or before."""
        when = loop.time() + deadline - time.perf_counter()
        if self._sweep is not None:
            if self._sweep.when() <= when:
                return
            self._sweep.cancel()
        self._sweep = loop.call_at(when, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer those whose time is over, replace threads that hang, and come again when the next time is over."""
        self._sweep, now = None, time.perf_counter()
        for job in [job for job in self._waiting if _expired(job, now)]:
            self._waiting.remove(job)
        for batch in list(self._running):
            for job in batch.jobs:
                _expired(job, now)
            if now - batch.began >= self._timeout_s:
                self._abandon(loop, batch, now)
        left = [job.deadline for job in self._waiting]
        left += [job.deadline for batch in self._running for job in batch.jobs if not job.future.done()]
        left += [batch.began + self._timeout_s for batch in self._running]
        if left:
            self._sweep_by(loop, min(left))

    def _abandon(self, loop: asyncio.AbstractEventLoop, batch: Batch, now: float) -> None:
        """Give up on a batch that has run for as long as anybody may wait: what was asked after it needs a thread."""
        assert self._threads is not None
        batch.abandoned = True
        self._running.discard(batch)
        self.hung += 1
        if self._traced is not None:
            self._traced(batch.asked, batch.began, now)
        logger.error("A batch has run for %.0f s and is given up; its thread is replaced.", now - batch.began)
        self._threads.replace()
        self._next(loop)


_USUAL = Terms()
# Rows that the server asks for itself: probes and golden rows. They are in no metric.
OWN = Terms(client="own")


def execute(run: Run, jobs: list[Job]) -> list[Outcome]:
    """Return, for each job, its part of the outputs, or what the backend raises for it alone."""
    try:
        return _split(run(_joined(jobs)), jobs)
    except BackendLostError as lost:
        # Not in halves: a process for each would take seconds.
        return [late() if job.future.done() else execute(lost.again, [job])[0] for job in jobs]
    except RequestError as error:  # there is no room, or time is over: for no row's fault
        return [error] * len(jobs)
    except Exception as error:
        if len(jobs) == 1:
            return [error]
        half = len(jobs) // 2
        return execute(run, jobs[:half]) + execute(run, jobs[half:])


def _expired(job: Job, now: float) -> bool:
    """Whether nobody waits for the job any more; whoever does at its deadline is told."""
    if now < job.deadline and not job.future.done():
        return False
    if not job.future.done():
        job.future.set_exception(late())
    return True


def _joined(jobs: list[Job]) -> Arrays:
    if len(jobs) == 1:
        return jobs[0].inputs
    return {name: np.concatenate([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}


def _split(outputs: Arrays, jobs: list[Job]) -> list[Outcome]:
    if len(jobs) == 1:
        return [outputs]
    parts: list[Outcome] = []
    start = 0
    for job in jobs:
        end = start + job.rows
        parts.append({name: array[start:end] for name, array in outputs.items()})
        start = end
    return parts
