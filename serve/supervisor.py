"""Several processes behind the same doors, under one that starts them, watches them, and replaces those that die.

What an operator asks of one is done by all; a process is replaced when it ends, or when its event loop has not been
heard of for ten seconds. A replacement takes connections only once its models have proved themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client.multiprocess import mark_process_dead

import shipline.errors
from shipline.backends.cores import cores
from shipline.errors import ServingError, ShiplineError
from shipline.serve.channel import Channel, Said
from shipline.serve.doors import Doors, address_of
from shipline.serve.settings import ServerSettings
from shipline.store import redact

logger = logging.getLogger("shipline.serve")

SILENT_S = 10.0
# So many ends in so many seconds are no accident.
MANY, IN_S = 10, 60.0
# What a process may take beyond its grace.
REST_S = 5.0

_ENDED: Said = {"status": 503, "text": "A process of the server ended meanwhile. Try again."}


@dataclass(eq=False)
class Worker:
    """One process, as far as it has been heard of."""

    process: asyncio.subprocess.Process
    channel: Channel
    heard_at: float | None = None  # None until its event loop runs
    ready: bool = False
    versions: dict[str, str] = field(default_factory=dict)  # of the models that it serves

    def stop(self) -> None:
        """Let it finish what it accepted, and end."""
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()


class Supervisor:
    """Serves with `count` processes until a signal.

    Args:
        url: of what is served.
        count: of processes.
        doors: that they share.
        trust: URLs below which models may hold code.
        grace_s: for what was accepted, when the end comes.
        settings: who is let in.
    """

    def __init__(
        self, url: str, count: int, doors: Doors, trust: Sequence[str], grace_s: int, settings: ServerSettings
    ) -> None:
        self._url, self._count, self._doors = url, count, doors
        self._trust, self._grace_s, self._settings = list(trust), grace_s, settings
        self._workers: dict[int, Worker] = {}
        self._asked: dict[int, asyncio.Future[Said]] = {}
        self._unloaded: set[str] = set()
        self._ends: list[float] = []
        self._was_ready = False
        self._stop = asyncio.Event()
        self._error: ShiplineError | None = None
        self._numbers = 0

    async def run(self) -> None:
        """Start the processes, and return when all have ended.

        Raises:
            ShiplineError: a model could not be loaded, or processes die one after the other.
        """
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._stop.set)
        logger.info("Serving %s on %s with %d processes", redact(self._url), address_of(self._doors.http), self._count)
        with tempfile.TemporaryDirectory(prefix="shipline-metrics-") as metrics:
            seats = [asyncio.create_task(self._keep(seat, metrics)) for seat in range(self._count)]
            watching = asyncio.create_task(self._watch())
            await self._stop.wait()
            for worker in self._workers.values():
                worker.stop()
            self._doors.close()  # each process closes its own; connections would still come in here, and wait in vain
            _, late = await asyncio.wait(seats, timeout=self._grace_s + REST_S)
            for worker in self._workers.values() if late else ():
                with contextlib.suppress(ProcessLookupError):
                    worker.process.kill()
            await asyncio.gather(watching, *seats)
        if self._error is not None:
            raise self._error

    async def _keep(self, seat: int, metrics: str) -> None:
        """Keep one process running."""
        while not self._stop.is_set():
            worker = await self._start(metrics)
            self._workers[seat] = worker
            if self._stop.is_set():  # it came while this one started
                worker.stop()
            hearing = asyncio.create_task(self._hear(worker))
            status = await worker.process.wait()
            await hearing
            mark_process_dead(worker.process.pid, metrics)  # type: ignore[no-untyped-call]
            del self._workers[seat]
            self._tell_ready()
            if not self._stop.is_set():
                self._judge(worker, status)
                await asyncio.sleep(0.1 if worker.ready else 1.0)

    def _judge(self, worker: Worker, status: int) -> None:
        """Say that a process died; give up where that happens again and again, or none ever was ready."""
        now = time.monotonic()
        self._ends = [end for end in self._ends if now - end < IN_S] + [now]
        logger.error("Process %d ended with %d; another takes its place.", worker.process.pid, status)
        if len(self._ends) >= MANY:
            self._error = self._error or ServingError(
                f"{len(self._ends)} processes died within {IN_S:g} s, the last with {status}: the log above says how."
            )
            self._stop.set()

    async def _start(self, metrics: str) -> Worker:
        ours, theirs = socket.socketpair()
        all_doors = (self._doors.http, self._doors.health, self._doors.grpc)
        doors = [None if door is None else door.fileno() for door in all_doors]
        passed = [theirs.fileno(), *(number for number in doors if number is not None)]
        share = str(max(cores() // self._count, 1))
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics, "SHIPLINE_CORES": share}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "shipline.serve.worker",
            stdin=asyncio.subprocess.PIPE, pass_fds=passed, env=environment,
        )  # fmt: skip
        given = {
            "url": self._url, "unloaded": sorted(self._unloaded), "pinned": self._pinned(), "doors": doors,
            "channel": theirs.fileno(),
            "trust": self._trust, "grace_s": self._grace_s, "settings": self._settings.to_json(),
            "at_once": not self._was_ready, "log_level": logging.getLevelName(logger.getEffectiveLevel()).lower(),
        }  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(given).encode() + b"\n")
        process.stdin.close()
        theirs.close()
        return Worker(process, await Channel.over(ours))

    def _pinned(self) -> dict[str, str]:
        """Return the versions that the others serve: what has become stable since waits for an operator's word."""
        return next((worker.versions for worker in self._workers.values() if worker.ready), {})

    async def _hear(self, worker: Worker) -> None:
        """Take what a process says, until it is gone."""
        doing: set[asyncio.Task[None]] = set()
        while (said := await worker.channel.hear()) is not None:
            worker.heard_at = time.monotonic()
            if said["say"] == "beat":
                worker.versions = said["versions"]
                if worker.ready != said["ready"]:
                    worker.ready = said["ready"]
                    self._tell_ready()
            elif said["say"] == "failed":
                self._failed(said)
            elif said["say"] == "done":
                waiting = self._asked.get(said["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(said)
            else:
                task = asyncio.create_task(self._ask_all(worker, said))
                doing.add(task)
                task.add_done_callback(doing.discard)
        worker.channel.close()

    def _failed(self, said: Said) -> None:
        """End it all where the models cannot be served, which another process would find, too."""
        kind: type[ShiplineError] = getattr(shipline.errors, said["kind"], ServingError)
        if not self._was_ready:
            self._error = self._error or kind(said["text"])
            self._stop.set()

    def _tell_ready(self) -> None:
        """Let each process know whether the server is ready: at first when all are, later as long as one is."""
        found = [worker.ready for worker in self._workers.values()]
        ready = any(found) if self._was_ready else len(found) == self._count and all(found)
        self._was_ready = self._was_ready or ready
        for worker in self._workers.values():
            worker.channel.say(do="ready", value=ready)

    async def _ask_all(self, asker: Worker, said: Said) -> None:
        """Let every process do what an operator asked one of them for, and answer with the first that could not."""
        answers = await asyncio.gather(*(self._ask(worker, said) for worker in list(self._workers.values())))
        if answers[0]["status"] == 200:  # for those that are yet to come
            (self._unloaded.add if said["verb"] == "unload" else self._unloaded.discard)(said["name"])
        worst = next((answer for answer in answers if answer["status"] != 200), answers[0])
        asker.channel.say(do="answer", id=said["id"], status=worst["status"], text=worst["text"])

    async def _ask(self, worker: Worker, said: Said) -> Said:
        self._numbers += 1
        number = self._numbers
        self._asked[number] = asyncio.get_running_loop().create_future()
        worker.channel.say(do=said["verb"], name=said["name"], id=number)
        asked = self._asked[number]
        gone = asyncio.create_task(worker.process.wait())
        gone.add_done_callback(lambda _: None if asked.done() else asked.set_result(_ENDED))
        try:
            return await asked
        finally:
            gone.cancel()
            del self._asked[number]

    async def _watch(self) -> None:
        """Kill processes whose event loop is not heard of any more."""
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), SILENT_S / 10)
            for worker in self._workers.values():
                if worker.heard_at is not None and time.monotonic() - worker.heard_at > SILENT_S:
                    logger.error("Process %d has not been heard of for %g s.", worker.process.pid, SILENT_S)
                    worker.process.kill()
