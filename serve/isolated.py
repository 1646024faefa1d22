"""Backends that run code, each in a process of its own: one that hangs or crashes costs its own requests only.

A process that ends is replaced at once. Whoever it was computing for is told so (`BackendLostError`), and may ask again
with nobody beside him: where that ends the next process, too, it was his request that did it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import ClassVar, Self

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.backends import RUN_CODE
from shipline.backends.base import Arrays, Backend
from shipline.serve.child import Child, EndedError
from shipline.serve.errors import BackendError, BackendLostError, RequestError, late, overloaded

logger = logging.getLogger(__name__)

LOAD_S = 300.0
WAIT_S = 30.0
CLOSE_S = 5.0


def backend_class(name: str, device: str = "cpu") -> type[Backend]:
    """Return the class that serves files for this backend; of one that runs code, an isolated one.

    Args:
        name: the backend that the file was proved with.
        device: one of DEVICES; where this backend cannot compute on it, the CPU does.

    Raises:
        UnknownNameError: no such backend.
        MissingExtraError: what it needs is not installed.
    """
    there = f"{name}-{device}"
    if there in plugins.known("backend"):
        name = there
    if name in RUN_CODE:  # said there, so that the server need not import torch to know it
        return isolated(plugins.BUILT_IN["backend"][name])
    found: type[Backend] = plugins.load("backend", name)
    return isolated(plugins.known("backend")[name]) if found.runs_code else found


def isolated(target: str) -> type[IsolatedBackend]:
    """Return the class that runs the backend `"module:attribute"` in a process of its own."""

    class Isolated(IsolatedBackend):
        """The backend with this name."""

    Isolated.target = target
    return Isolated


class IsolatedBackend(Backend):
    """A backend in another process. `run` may be called from several threads at once, and never from an event loop.

    A thread keeps a process: it starts one, hands its answers on, and starts the next where it ends; but no more than
    `starts` in `within_s` seconds.
    """

    runs_code: ClassVar[bool] = True
    target: ClassVar[str]
    #: Less than the batcher's, so that it is the process that is replaced and no thread.
    limit_s: ClassVar[float] = 50.0
    starts: ClassVar[int] = 10
    within_s: ClassVar[float] = 60.0

    def __init__(self, model: bytes, settings: ServingSettings) -> None:
        self._settings = settings
        # Not in memory: it is for the next process, and closed by the thread that starts one.
        self._model = tempfile.TemporaryFile()  # noqa: SIM115
        self._model.write(model)
        self._model.flush()
        self._changed = threading.Condition()
        self._newest: Child | None = None
        self._child: Child | None = None
        self._in_flight = self._suspects = 0
        self._alone = self._resting = self._closed = False
        self._loaded: Future[None] = Future()
        self._keeper = threading.Thread(target=self._keep, name="shipline-isolated", daemon=True)
        self._keeper.start()

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        """Return the backend when its process has loaded the model.

        Raises:
            ShiplineError: what loading it raised; or a BackendError, it ended its process or took too long.
        """
        backend = cls(model, settings)
        backend._loaded.result()
        return backend

    @property
    def pid(self) -> int | None:
        """The process id of its process, where there is one."""
        child = self._child
        return None if child is None else child.pid

    @property
    def available(self) -> bool:
        """Whether there is a process, or will be one at once."""
        return not self._resting

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name.

        Raises:
            InputError: it cannot compute with these values.
            BackendError: what else it raised.
            BackendLostError: its process ended meanwhile.
            RequestError: 503, there is no process now; 504, there was no answer in time.
        """
        return self._asked(inputs, alone=False)

    def close(self) -> None:
        """End the process."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._newest is not None:
                self._newest.hang_up()
        self._keeper.join(CLOSE_S)

    def _asked(self, inputs: Arrays, *, alone: bool) -> Arrays:
        with self._place(alone) as child:
            try:
                return child.ask(inputs, self.limit_s)
            except TimeoutError:
                logger.error("%s has not answered for %g s; its process is ended", self.target, self.limit_s)
                self._give_up(child)
                raise late() from None
            except EndedError:
                pass
        if alone:
            raise BackendError("It ended its process on this input.")
        raise BackendLostError(functools.partial(self._asked, alone=True))

    @contextlib.contextmanager
    def _place(self, alone: bool) -> Iterator[Child]:
        """Give the process in the block, and let nobody else ask it meanwhile where `alone`."""
        with self._changed:
            child = self._room(alone)
            self._in_flight += 1
            self._alone = alone
        try:
            yield child
        finally:
            with self._changed:
                self._in_flight -= 1
                self._alone = False
                self._changed.notify_all()

    def _room(self, alone: bool) -> Child:
        """Wait for a place at the process; RequestError 503 where there is none soon."""

        def there_is() -> bool:
            beside = self._in_flight if alone else self._suspects
            return self._closed or self._resting or (self._child is not None and not (beside or self._alone))

        self._suspects += alone
        try:
            found = self._changed.wait_for(there_is, WAIT_S)
        finally:
            self._suspects -= alone
            self._changed.notify_all()
        if self._resting:
            raise RequestError(503, "The model has failed too often. Try again in a minute.", {"retry-after": "60"})
        if not found or self._child is None or self._closed:
            raise overloaded("The model is being started again. Try again in a second.")
        return self._child

    def _keep(self) -> None:
        """Have one process after the other, until this is closed or the first cannot load the model."""
        started: deque[float] = deque(maxlen=self.starts)
        with self._model:
            while self._may_start(started):
                started.append(time.monotonic())
                try:
                    self._keep_one()
                except Exception as error:
                    if not self._loaded.done():
                        self._loaded.set_exception(error)
                        return
                    logger.error("%s cannot be started again: %s", self.target, error)

    def _keep_one(self) -> None:
        """Have one process until it ends."""
        child = Child(self.target, self._model, self._settings)
        try:
            with self._changed:
                self._newest = child
                if self._closed:
                    return
            child.load(LOAD_S)
            self._offer(child)
            if not self._loaded.done():
                self._loaded.set_result(None)
            child.listen()
        finally:
            self._offer(None)
            status = child.end()
        if not self._closed:
            logger.error("%s: process %d ended (%d); another is started", self.target, child.pid, status)

    def _give_up(self, child: Child) -> None:
        with self._changed:
            if self._child is child:  # nobody asks it any more, even before it is seen to have ended
                self._child = None
        child.kill()

    def _offer(self, child: Child | None) -> None:
        with self._changed:
            self._child = child
            self._changed.notify_all()

    def _may_start(self, started: deque[float]) -> bool:
        """Return whether this is still open, after a rest where processes ended too often."""
        rest = started[0] + self.within_s - time.monotonic() if len(started) == self.starts else 0.0
        with self._changed:
            if rest > 0 and not self._closed:
                logger.error("%s: %d processes ended in %g s", self.target, self.starts, self.within_s)
                self._resting = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed, rest)
                self._resting = False
            return not self._closed
