"""Ends a run whose step hangs, and says which worker is missing and in which collective.

Each worker has two threads. One tells the others, through the process group's store, where the worker is, and listens
to them while its own step takes long; the store's own machine may hang, and this thread with it. The other one keeps
the time, and never waits for anybody. A worker that is stopped, or whose GIL is held, does not tell: so it is found.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.distributed_c10d import _get_default_store

from shipline.errors import HungError
from shipline.train.distributed.collectives import gather_objects
from shipline.train.distributed.verdict import Heard, Verdict, judge
from shipline.train.distributed.whereabouts import Process, Whereabouts

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: What a process that the watchdog ends returns: as `timeout` does.
EXIT_CODE = 124

_BEATS = 20  # a deadline has so many
_SLOWEST = 5.0  # seconds between two
_LAST_WORDS = 0.05  # of the deadline, for what is written down before the end
_watched = 0


class Clock:
    """When the step that runs has begun; this one is watched by nobody."""

    def mark(self, what: str, number: int | None = None) -> None:
        """Say that a step begins."""

    def rest(self) -> None:
        """Say that what comes may take any time."""


class Watchdog(Clock):
    """Watches the steps of one worker.

    Args:
        deadline: seconds that a step may take.
        end: is given what is to be said when one takes longer; it ends the worker.
    """

    def __init__(self, deadline: float, end: Callable[[str], None]) -> None:
        self._deadline, self._end = deadline, end
        self._beat = min(deadline / _BEATS, _SLOWEST)
        self._thread = threading.get_ident()
        self._step: tuple[str, int | None, float] | None = None
        self._stopped = threading.Event()
        self._number = 0
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._processes = dict(enumerate(gather_objects(Process.own())))
        self._others = [rank for rank in self._processes if rank != self._rank]
        self._store = _own_store() if self._others else None
        #: Number of the last beat of each other worker, when it came, and what it said.
        self._heard: dict[int, tuple[int, float, Whereabouts | None]] = {}
        #: When the store has last answered.
        self._answered = time.monotonic()

    def mark(self, what: str, number: int | None = None) -> None:
        """Say that a step begins."""
        self._step = (what, number, time.monotonic())

    def rest(self) -> None:
        """Say that what comes may take any time."""
        self._step = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch within the block."""
        for job in (self._keep_time, self._tell) if self._store is not None else (self._keep_time,):
            threading.Thread(target=job, name="shipline-watchdog", daemon=True).start()
        try:
            yield
        finally:
            self._step = None
            self._stopped.set()

    # ---- one thread --------------------------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        while not self._stopped.wait(self._beat / 4):
            if (late := self._late()) is not None and late >= 0:
                self._end_run(self._verdict())
                return

    def _late(self) -> float | None:
        step = self._step
        return None if step is None else time.monotonic() - step[2] - self._deadline

    def _verdict(self) -> Verdict:
        now, patience = time.monotonic(), 4 * self._beat
        others, heard = {rank: Heard(0.0, None) for rank in self._others}, dict(self._heard)  # the other thread writes
        deaf = bool(others) and now - self._answered > patience
        if deaf and 0 in others and _first_holds_the_store():
            deaf, others[0] = False, Heard(now - self._answered, None)
        elif not deaf:
            others |= {rank: Heard(now - since, where) for rank, (_, since, where) in heard.items()}
        return judge(self._deadline, self._rank, self._where(), others, self._processes, patience, deaf=deaf)

    def _end_run(self, verdict: Verdict) -> None:
        for rank in verdict.silent:
            if self._processes[rank].kill():
                logger.warning("Worker %d, which does not run any more, is ended: %s.", rank, self._processes[rank])
        self._end(verdict.message)

    # ---- the other one -----------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        store = self._store
        assert store is not None
        while not self._stopped.wait(self._beat):
            self._number += 1
            try:
                store.set(str(self._rank), json.dumps(self._where().as_json()))
                late = self._late()
                if late is not None and late > -self._deadline / 2:
                    self._listen(store)
                elif self._heard:
                    self._heard.clear()
                self._answered = time.monotonic()
            except (dist.DistError, RuntimeError):  # whoever holds the store is gone
                return

    def _listen(self, store: Store) -> None:
        all_told = store.check([str(rank) for rank in self._others])
        ready = [rank for rank in self._others if all_told or store.check([str(rank)])]
        told = store.multi_get([str(rank) for rank in ready]) if ready else []
        now = time.monotonic()
        for rank in self._others:
            self._heard.setdefault(rank, (0, now, None))
        for rank, data in zip(ready, told, strict=True):
            where = Whereabouts(**json.loads(data))
            if where.number != self._heard[rank][0]:
                self._heard[rank] = (where.number, now, where)

    def _where(self) -> Whereabouts:
        what, number, _ = self._step or ("between steps", None, 0.0)
        step = what if number is None else f"{what} {number}"
        return Whereabouts.of_thread(self._thread, self._number, step)


def _own_store() -> Store:
    """A connection of our own: the group's may be waiting for something."""
    global _watched
    _watched += 1
    group: Any = _get_default_store()  # its stub does not know of clone
    store = PrefixStore(f"shipline/watchdog/{_watched}", group.clone())
    store.set_timeout(timedelta(seconds=60))
    return store


def _first_holds_the_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


@contextlib.contextmanager
def watched(trainer: Trainer) -> Iterator[None]:
    """Watch the trainer's steps within the block, where it is set to."""
    if trainer.step_timeout is None:
        yield
        return
    trainer.clock = watchdog = Watchdog(trainer.step_timeout, trainer.on_hang or ending(trainer))
    try:
        with watchdog.running():
            yield
    finally:
        trainer.clock = Clock()


def ending(trainer: Trainer) -> Callable[[str], None]:
    """Return what writes down why the run ends, and ends this process: its main thread may never return."""

    def end(message: str) -> None:
        print(f"HungError: {message}", file=sys.stderr, flush=True)  # noqa: T201 -- nobody is left to catch it
        if trainer.is_global_zero and trainer.run_directory is not None and trainer.step_timeout is not None:
            store = trainer.run_directory.store
            writing = threading.Thread(target=trainer.records.fail, args=(store, HungError(message)), daemon=True)
            writing.start()
            writing.join(trainer.step_timeout * _LAST_WORDS)
        os._exit(EXIT_CODE)

    return end


def apart(trainer: Trainer, function: Callable[[], T]) -> T:
    """Return what the function returns, where the trainer is watched in a thread that can be left behind if it hangs.

    For processes that somebody else ends, such as Ray's: there an error says more than an exit.

    Raises:
        HungError: a step hangs.
    """
    if trainer.step_timeout is None:
        return function()
    ends: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
    trainer.on_hang = lambda message: ends.put((None, HungError(message)))

    def run() -> None:
        try:
            ends.put((function(), None))
        except BaseException as error:
            ends.put((None, error))

    threading.Thread(target=run, name="shipline-worker", daemon=True).start()
    found, error = ends.get()
    if error is not None:
        raise error
    return found  # type: ignore[no-any-return]
