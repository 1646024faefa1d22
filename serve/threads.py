"""Threads that run batches, and read storages, and may be left behind where one hangs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
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


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Return what the function does in a thread of its own, which keeps no process from ending.

    `asyncio.to_thread` has threads that are waited for at the end, and a storage may never answer.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=work, name="shipline-load", daemon=True).start()
    return await future
