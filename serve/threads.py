"""Threads that run batches, and may be left behind where one hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Call = tuple[Callable[[], Any], Callable[[Any], object]]


class Threads:
    """So many threads that take calls from one queue.

    Not `concurrent.futures`: its threads are waited for when the interpreter ends, so one that hangs keeps the whole
    process from ending.
    """

    def __init__(self, count: int) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._started = 0
        self._threads = [self._start() for _ in range(count)]

    def call(self, function: Callable[[], Any], done: Callable[[Any], object]) -> None:
        """Call `done` with what `function`, which may not raise, returns; both in one of the threads."""
        self._calls.put((function, done))

    def replace(self) -> None:
        """Add a thread in place of one that hangs."""
        self._threads.append(self._start())

    def close(self) -> None:
        """End the threads that do not hang. Nothing may be running."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _start(self) -> threading.Thread:
        self._started += 1
        thread = threading.Thread(target=self._work, name=f"shipline-backend-{self._started}", daemon=True)
        thread.start()
        return thread

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, done = call
            done(function())
            del call, function, done  # what they hold is not kept until the next call
