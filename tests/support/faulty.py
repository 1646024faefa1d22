"""A backend that does, for some values, whatever a backend may do to its process; it doubles all others."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.errors import InputError

EXIT, KILL, SEGFAULT, LEAVE, RAISE, REFUSE, MEMORY, HANG, HANG_ALL, GATE = (-float(n) for n in range(1, 11))


class FaultyBackend(Backend):
    """`x` -> `y` = 2x, but for the values above. The model's bytes are the path of a named pipe: GATE waits at it."""

    runs_code: ClassVar[bool] = True

    def __init__(self, gate: str) -> None:
        self._gate = gate

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        if model == b"exit":
            os._exit(3)
        if model == b"hang":
            threading.Event().wait()
        if model == b"refuse":
            raise InputError("no such model")
        (Path(tempfile.mkdtemp()) / "unpacked").touch()  # as compiled code does
        return cls(model.decode())

    def run(self, inputs: Arrays) -> Arrays:
        for value in inputs["x"][inputs["x"] < 0].tolist():
            self._fail(value)
        return {"y": inputs["x"] * 2}

    def _fail(self, value: float) -> None:
        ways: dict[float, Callable[[], object]] = {
            EXIT: lambda: os._exit(3),
            KILL: lambda: os.kill(os.getpid(), signal.SIGKILL),
            SEGFAULT: lambda: ctypes.string_at(0),
            LEAVE: sys.exit,
            MEMORY: lambda: np.ones(1 << 42),
            HANG: threading.Event().wait,
            HANG_ALL: ctypes.PyDLL(None).pause,  # with Python's lock in hand
            GATE: Path(self._gate).read_bytes,
        }
        if value == RAISE:
            raise ValueError("a row is poison")
        if value == REFUSE:
            raise InputError("'x' is none")
        ways[value]()
