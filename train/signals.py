"""Ctrl-C and SIGTERM: noted when they come, heeded when a batch is done, so that a checkpoint can be made."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Signals:
    """Which signal has come; a second one of the same kind ends the process at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        #: The signal that all workers know of.
        self.agreed: int | None = None

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Note signals within the block; only a process's main thread can."""
        self.received = self.agreed = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in _EXIT}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            raise ending(number)
        self.received = number


def ending(number: int) -> BaseException:
    """Return what ends the process as the signal would; where somebody types, a KeyboardInterrupt, which does not."""
    if number == signal.SIGINT and hasattr(sys, "ps1"):
        return KeyboardInterrupt()
    return SystemExit(_EXIT[signal.Signals(number)])
