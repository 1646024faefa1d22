"""The far side of an `IsolatedBackend`: one backend in a process of its own, which answers over a socket.

    python -m shipline.serve.isolated_worker <socket> <model> <server> <module:attribute> <settings>

with numbers of files that it inherits, the process id of the server, and JSON. It ends when the server does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.backends.cores import cores
from shipline.backends.trial import limit_memory
from shipline.serve import frames

_OOM_SCORE = Path("/proc/self/oom_score_adj")
_PR_SET_PDEATHSIG = 1
MAX_MESSAGE = 2000


class Worker:
    """Threads that each take a call, run it and answer it."""

    def __init__(self, connection: socket.socket, backend: Backend) -> None:
        self._connection, self._backend = connection, backend
        self._reading, self._writing = threading.Lock(), threading.Lock()

    def start(self) -> None:
        """Work, in one thread more than batches run at once: that one listens, and hears when the server ends."""
        for _ in range(cores()):
            threading.Thread(target=self._work, daemon=True).start()
        self._work()

    def _work(self) -> None:
        while True:
            with self._reading:
                number, inputs = self._next()
            parts = self._answered(number, inputs)
            del inputs
            with self._writing:
                frames.send(self._connection, parts)

    def _next(self) -> tuple[int, Arrays]:
        """Return the next call; end the process where none can come any more."""
        try:
            header, inputs = frames.receive(self._connection)
        except (EOFError, OSError):
            with contextlib.suppress(Exception):
                self._backend.close()  # compiled code has files to remove
            os._exit(0)
        except BaseException:  # what follows in the stream cannot be told apart any more
            os._exit(1)
        return header["call"], inputs

    def _answered(self, number: int, inputs: Arrays) -> frames.Parts:
        try:
            return frames.packed({"call": number}, self._backend.run(inputs))
        except BaseException as error:  # also what would end this thread, and leave its caller waiting
            return frames.packed({"call": number, **failure(error)})


def failure(error: BaseException) -> frames.Header:
    """Return an error as it is told to the server."""
    return {"error": type(error).__name__, "message": str(error)[:MAX_MESSAGE]}


def main(connected: str, model: str, server: str, target: str, settings: str) -> int:
    """Load the backend and answer calls until the server hangs up; return the exit status where it cannot be loaded."""
    for name in (signal.SIGINT, signal.SIGTERM):  # who sends them to all, lets the server finish what it accepted
        signal.signal(name, signal.SIG_IGN)
    _end_with(int(server))
    connection = socket.socket(fileno=int(connected))
    try:
        backend = _load(int(model), target, ServingSettings.model_validate_json(settings))
    except Exception as error:
        frames.send(connection, frames.packed(failure(error)))
        return 1
    frames.send(connection, frames.packed({}))
    Worker(connection, backend).start()
    return 0


def _load(model: int, target: str, settings: ServingSettings) -> Backend:
    chosen: type[Backend] = plugins.load_target(target)
    limit_memory()  # now, since what it has imported counts, too
    with os.fdopen(model, "rb") as file:
        file.seek(0)
        return chosen.load(file.read(), settings)


def _end_with(server: int) -> None:
    """See to it that this process ends with the server, even while all its threads hang; and is ended before it.

    Where there is no Linux, a thread that listens hears of the server's end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        with contextlib.suppress(OSError):
            _OOM_SCORE.write_text("1000")
    if os.getppid() != server:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
