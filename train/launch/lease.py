"""Who trains a run: of two drivers that go on with one, the first wins, and a dead one's place can be taken.

A lease is the file `driver/<n>` in the run's directory, made with create mode, so that of several who want to be
number n one is. The owner writes it anew as long as it lives; who finds it released, or unchanged for some time, takes
number n+1.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

import psutil

from shipline.errors import ConfigError, ExistsError, NotFoundError, ShiplineError, TrainingError
from shipline.store import Store

DIRECTORY = "driver"
BEAT_S = 10.0
SILENT_S = 45.0


class Lease:
    """The right to train a run; a context that holds it.

    Args:
        run: the run's directory.
        beat_s: how often the owner shows that it lives.
        silent_s: how long another one's file must not change before its owner counts as dead.

    Raises:
        ConfigError: somebody else trains the run.
    """

    def __init__(self, run: Store, beat_s: float = BEAT_S, silent_s: float = SILENT_S) -> None:
        self._run, self._beat_s, self._silent_s = run, beat_s, silent_s
        self._me = {"owner": secrets.token_hex(8), "host": _this_host(), **_this_process()}
        self._number = -1
        #: Whether another driver has taken the run over, since this one seemed dead.
        self.is_lost = False
        #: Who that is.
        self.successor = "which says nothing of itself"
        self._ended = threading.Event()
        self._beats = 0

    def __enter__(self) -> Self:
        """Take the lease."""
        numbers = self._numbers()
        if numbers and not self._is_free(numbers[-1]):
            raise self._taken(numbers[-1])
        self._number = numbers[-1] + 1 if numbers else 0
        try:
            self._run.create(self._key(self._number), self._content())
        except ExistsError:
            raise self._taken(self._number) from None
        for old in numbers:
            self._run.remove(self._key(old))
        self._beating = threading.Thread(target=self._beat, name="shipline-lease", daemon=True)
        self._beating.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Give it back."""
        self._ended.set()
        self._beating.join()
        if not self.is_lost:
            with contextlib.suppress(ShiplineError):  # it will be found unchanged
                self._run.write(self._key(self._number), self._content(released=True))

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            self._beats += 1
            with contextlib.suppress(ShiplineError):  # a store that is away is no reason to stop
                if (newest := self._numbers()[-1:]) > [self._number]:
                    with contextlib.suppress(ShiplineError, ValueError):
                        self.successor = self._owner(newest[0])
                    self.is_lost = True
                    return
                self._run.write(self._key(self._number), self._content())

    def _is_free(self, number: int) -> bool:
        """Whether its owner is dead: it ran here and is gone, or its file does not change."""
        before = self._read(number)
        if before is None or before["released"]:
            return True
        if before["host"] == self._me["host"]:
            return not _lives(before)
        end = time.monotonic() + self._silent_s
        while time.monotonic() < end:
            if self._ended.wait(min(1.0, self._silent_s / 4)) or self._read(number) != before:
                now = self._read(number)
                return now is None or bool(now["released"])
        return True

    def _taken(self, number: int) -> ConfigError:
        return ConfigError(
            f"{self._run} is being trained by {self._owner(number)}: wait for it or end it, or leave out ckpt_path to "
            "begin another run."
        )

    def lost(self) -> TrainingError:
        """Return what this driver says when another has taken the run over."""
        return TrainingError(
            f"Another driver, {self.successor}, has taken {self._run} over, since this one had not shown for "
            f"{self._silent_s:g} s that it lives: it was stopped, or could not reach the store. The workers of this "
            "one are ended; the other goes on from the last checkpoint."
        )

    def _owner(self, number: int) -> str:
        owner = self._read(number) or {}
        return f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'another machine')}"

    def _numbers(self) -> list[int]:
        return sorted(int(name) for name in self._run.list(DIRECTORY) if name.isdecimal())

    def _read(self, number: int) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._run.read(self._key(number)))
        except NotFoundError:
            return None
        return found

    def _key(self, number: int) -> str:
        return f"{DIRECTORY}/{number}"

    def _content(self, *, released: bool = False) -> bytes:
        return json.dumps({**self._me, "beats": self._beats, "released": released}).encode()


def _this_host() -> str:
    """This machine, or this container of it: what process numbers mean."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} ({Path('/proc/self/ns/pid').stat().st_ino})"
    return socket.gethostname()


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": psutil.Process().create_time()}


def _lives(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(owner["pid"])
        return bool(process.create_time() == owner["started"] and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
