"""Ctrl-C, SIGTERM and what a queue sends: noted when they come, heeded after a batch, so that a run can be saved."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}
#: In place of a signal: this worker will be taken away, and the run goes on without it.
TAKEN_AWAY = 0


class TakenAway(SystemExit):
    """A worker has saved, since it will be taken away."""


class Signals:
    """Which signal has come; a second one of the same kind ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        #: The signal that all workers know of.
        self.agreed: int | None = None
        #: Where the main thread is not ours, tells what has come meanwhile; None: nothing.
        self.ask: Callable[[], int | None] | None = None
        self._requeue: int | None = None

    def look(self) -> int | None:
        """Return what has come, None where nothing has."""
        if self.received is None and self.ask is not None:
            self.received = self.ask()
        return self.received

    @contextlib.contextmanager
    def handled(self, requeue: int | None = None) -> Iterator[None]:
        """Note signals within the block; only a process's main thread can.

        Args:
            requeue: the signal that asks to give the job back to its queue, if there is one.
        """
        self.received = self.agreed = None
        self._requeue = requeue
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (*_EXIT, *([requeue] if requeue else []))}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        waiting = self.received is not None and self.received == self._requeue
        if number == self._requeue or (waiting and number == signal.SIGTERM):
            # A queue tells every process, more than once, and ends the job with SIGTERM: that is no reason to hurry.
            self.received = self.received or number
            return
        if self.received is not None:
            raise ending(number)
        self.received = number


def told(wishes: list[int | None]) -> int | None:
    """Return what several workers were told, None if nothing: a signal that ends the run comes first."""
    return max((number for number in wishes if number is not None), default=None)


def ending(number: int) -> BaseException:
    """Return what ends the process as the signal would; where somebody types, a KeyboardInterrupt, which does not."""
    if number == TAKEN_AWAY:
        return TakenAway(_EXIT[signal.SIGTERM])
    if number == signal.SIGINT and hasattr(sys, "ps1"):
        return KeyboardInterrupt()
    return SystemExit(_EXIT.get(signal.Signals(number), 128 + number))
