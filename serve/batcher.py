"""Greedy batching: a free thread takes at once what is queued, up to a batch; nobody waits for a timer.

A batch that fails is halved until the one request that is at fault stands alone, so innocent ones get their answers. A
caller that went away is left out, or its rows are thrown away; its batch-mates do not notice.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from shipline.backends.base import Arrays
from shipline.serve.errors import overloaded

Run = Callable[[Arrays], Arrays]
Shapes = tuple[tuple[int, ...], ...]
Outcome = Arrays | Exception


@dataclass(slots=True)
class Job:
    """The rows of one request, waiting."""

    inputs: Arrays
    rows: int
    future: asyncio.Future[Arrays]
    queued_at: float


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
    """

    def __init__(
        self, run: Run, *, max_batch: int, max_queued: int, threads: int, stats: BatcherStats | None = None
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_queued = max_queued
        self._stats = stats or BatcherStats()
        self._executor: Executor | None = (
            ThreadPoolExecutor(threads, thread_name_prefix="shipline-backend") if threads else None
        )
        self._queue: deque[Job] = deque()
        self._queued_rows = 0
        self._free = max(threads, 1)

    async def submit(self, inputs: Arrays, rows: int) -> Arrays:
        """Return the outputs for these rows.

        Args:
            inputs: name -> [rows, ...], checked against the signature.
            rows: 1 to `max_batch`.

        Raises:
            RequestError: 503, too many rows wait already.
            Exception: what the backend raised for these rows alone.
        """
        if self._queued_rows + rows > self._max_queued:
            raise overloaded("Too many requests are waiting. Try again in a second.")
        loop = asyncio.get_running_loop()
        job = Job(inputs, rows, loop.create_future(), time.perf_counter())
        self._queue.append(job)
        self._queued_rows += rows
        if self._free:
            self._free -= 1
            # Not at once: requests that arrived in the same turn of the loop join this batch.
            loop.call_soon(self._next, loop)
        return await job.future

    def close(self) -> None:
        """Give back the threads. Nothing may be waiting."""
        if self._executor is not None:
            self._executor.shutdown()

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take a batch and run it, here or in a thread."""
        jobs = self._take()
        if not jobs:
            self._free += 1
            return
        if self._executor is None:
            self._finish(loop, jobs, time.perf_counter(), execute(self._run, jobs))
            return
        began = time.perf_counter()
        running = loop.run_in_executor(self._executor, execute, self._run, jobs)
        running.add_done_callback(lambda done: self._finish(loop, jobs, began, done.result()))

    def _take(self) -> list[Job]:
        """The oldest job, and as many of those behind it as have rows of the same shape and still fit."""
        jobs: list[Job] = []
        room = self._max_batch
        shapes: Shapes | None = None
        while self._queue:
            job = self._queue[0]
            if job.future.done():  # its caller went away
                self._drop(self._queue.popleft())
                continue
            if shapes is None:
                shapes = _shapes(job)
            elif job.rows > room or _shapes(job) != shapes:
                break
            room -= job.rows
            jobs.append(self._drop(self._queue.popleft()))
        return jobs

    def _drop(self, job: Job) -> Job:
        self._queued_rows -= job.rows
        return job

    def _finish(self, loop: asyncio.AbstractEventLoop, jobs: list[Job], began: float, outcomes: list[Outcome]) -> None:
        for job, outcome in zip(jobs, outcomes, strict=True):
            if job.future.done():
                continue
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        self._stats.batch(sum(job.rows for job in jobs), began - jobs[0].queued_at, time.perf_counter() - began)
        if self._queue:
            # Let the loop read and write sockets before the next batch.
            loop.call_soon(self._next, loop)
        else:
            self._free += 1


def execute(run: Run, jobs: list[Job]) -> list[Outcome]:
    """Return, for each job, its part of the outputs, or what the backend raises for it alone."""
    try:
        return _split(run(_joined(jobs)), jobs)
    except Exception as error:
        if len(jobs) == 1:
            return [error]
        half = len(jobs) // 2
        return execute(run, jobs[:half]) + execute(run, jobs[half:])


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


def _shapes(job: Job) -> Shapes:
    return tuple(array.shape[1:] for array in job.inputs.values())
