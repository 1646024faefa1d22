"""A process that runs one backend, as the server sees it: calls go in from any thread, answers come in any order."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from typing import IO

from shipline import errors
from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays
from shipline.errors import ShiplineError
from shipline.serve import frames
from shipline.serve.errors import BackendError

logger = logging.getLogger(__name__)

END_S = 2.0


class EndedError(Exception):
    """The process ended before it had answered."""


class Child:
    """The process. On Linux it ends with the thread that made it, so that is the one that must listen to it."""

    def __init__(self, target: str, model: IO[bytes], settings: ServingSettings) -> None:
        # Compiled code unpacks itself into temporary files, which nobody removes when its process is killed.
        self._scratch = tempfile.TemporaryDirectory(prefix="shipline-backend-", ignore_cleanup_errors=True)
        self._connection, theirs = socket.socketpair()
        with theirs:
            files = (theirs.fileno(), model.fileno())
            # -P: what lies in the working directory is not imported.
            command = [sys.executable, "-P", "-m", "shipline.serve.isolated_worker", *map(str, files)]
            command += [str(os.getpid()), target, settings.model_dump_json()]
            self._process = subprocess.Popen(  # noqa: S603 -- of this interpreter, with arguments of ours
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=files,
                start_new_session=True,
                env={**os.environ, "TMPDIR": self._scratch.name},
            )
        self._numbers = itertools.count()
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._calls: dict[int, Future[Arrays]] = {}
        self._ended = False

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def load(self, seconds: float) -> None:
        """Return when the backend is loaded.

        Raises:
            ShiplineError: what loading it raised; or a BackendError, it ended the process or took too long.
        """
        timer = threading.Timer(seconds, self.kill)
        timer.daemon = True
        timer.start()
        try:
            header, _ = frames.receive(self._connection)
        except (EOFError, OSError):
            status = self._process.wait()
            raise BackendError(
                f"Loading it ended its process ({status}): it crashed, or took longer than {seconds:g} s."
            ) from None
        finally:
            timer.cancel()
        if "error" in header:
            raise _error(header)

    def ask(self, inputs: Arrays, seconds: float) -> Arrays:
        """Return the outputs.

        Raises:
            TimeoutError: there are none in time. The process is of no use any more: kill it.
            EndedError: the process ended.
            ShiplineError: what the backend raised.
        """
        until = time.monotonic() + seconds
        call: Future[Arrays] = Future()
        with self._lock:
            if self._ended:
                raise EndedError
            self._calls[number := next(self._numbers)] = call
        try:
            self._send(frames.packed({"call": number}, inputs), until)
            return call.result(max(until - time.monotonic(), 0.0))
        finally:
            with self._lock:
                self._calls.pop(number, None)

    def listen(self) -> None:
        """Hand each answer to who waits for it; return when the process has ended, or sent what is none."""
        try:
            while True:
                header, outputs = frames.receive(self._connection)
                with self._lock:
                    call = self._calls.pop(header["call"], None)
                if call is None:
                    continue
                if "error" in header:
                    call.set_exception(_error(header))
                else:
                    call.set_result(outputs)
        except (EOFError, OSError):
            pass
        except Exception:
            logger.exception("A backend's process sent what is no answer, and is ended")
            self.kill()

    def hang_up(self) -> None:
        """Let the process end by itself."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def end(self) -> int:
        """End the process, tell those who wait for its answers, and return its exit status."""
        self.hang_up()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
        status = self._process.wait()
        with self._lock:
            self._ended = True
            waiting = list(self._calls.values())
            self._calls.clear()
        for call in waiting:
            call.set_exception(EndedError())
        self._connection.close()
        self._scratch.cleanup()
        return status

    def _send(self, parts: frames.Parts, until: float) -> None:
        if not self._sending.acquire(timeout=max(until - time.monotonic(), 0.0)):
            raise TimeoutError
        try:
            self._connection.settimeout(max(until - time.monotonic(), 1e-3))
            frames.send(self._connection, parts)
        except TimeoutError:
            raise
        except OSError:
            raise EndedError from None
        finally:
            self._sending.release()


def _error(header: frames.Header) -> ShiplineError:
    """Return the error that a process told of: Shipline's own as they were, any other as a BackendError."""
    kind = getattr(errors, header["error"], None)
    if isinstance(kind, type) and issubclass(kind, ShiplineError):
        return kind(header["message"])
    return BackendError(f"{header['error']}: {header['message']}")
