"""One of several processes that serve together; the supervisor starts it as `python -m shipline.serve.worker`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from shipline.commands.logs import log_to_terminal
from shipline.errors import ShiplineError
from shipline.serve.channel import Channel, Said
from shipline.serve.doors import Doors
from shipline.serve.errors import RequestError
from shipline.serve.http.app import Application
from shipline.serve.server import Serving
from shipline.serve.settings import ServerSettings

logger = logging.getLogger(__name__)

BEAT_S = 1.0


class Colleague:
    """What this process has to do with the others: it does what the supervisor says, and says how it is.

    An operator's wish that arrives here becomes everybody's: it goes to the supervisor, and comes back to all.
    """

    def __init__(
        self,
        app: Application,
        end: socket.socket,
        *,
        listens_at_once: bool,
        unloaded: frozenset[str],
        pinned: dict[str, str],
    ) -> None:
        self.listens_at_once = listens_at_once
        self.unloaded, self.pinned = unloaded, pinned
        self._app = app
        self._end = end
        self._channel: Channel | None = None
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def work(self) -> None:
        """Listen to the supervisor, and end with it."""
        self._channel = channel = await Channel.over(self._end)
        beating = asyncio.create_task(self._beat(channel))
        doing: set[asyncio.Task[None]] = set()
        try:
            while (said := await channel.hear()) is not None:
                task = asyncio.create_task(self._obey(channel, said))
                doing.add(task)
                task.add_done_callback(doing.discard)
            logger.error("The supervisor is gone; so goes this process.")
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            beating.cancel()
            channel.close()

    def say_failed(self, error: ShiplineError) -> None:
        """Tell why this process cannot serve."""
        if self._channel is not None:
            self._channel.say(say="failed", kind=type(error).__name__, text=str(error))

    async def load(self, name: str) -> None:
        """Let every process load the model; RequestError as `Repository.load`."""
        await self._ask("load", name)

    async def unload(self, name: str) -> None:
        """Let every process unload the model; RequestError as `Repository.unload`."""
        await self._ask("unload", name)

    async def _ask(self, verb: str, name: str) -> None:
        assert self._channel is not None
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._channel.say(say="ask", verb=verb, name=name, id=number)
        try:
            await self._waiting[number]
        finally:
            del self._waiting[number]

    async def _obey(self, channel: Channel, said: Said) -> None:
        if said["do"] == "ready":
            self._app.others_ready = said["value"]
        elif said["do"] == "answer":
            waiting = self._waiting.get(said["id"])
            if waiting is None or waiting.done():
                return
            if said["status"] == 200:
                waiting.set_result(None)
            else:
                waiting.set_exception(RequestError(said["status"], said["text"]))
        else:
            actions: dict[str, Callable[[str], Awaitable[None]]] = {
                "load": self._app.repository.load,
                "unload": self._app.repository.unload,
            }
            status, text = 200, ""
            try:
                await actions[said["do"]](said["name"])
            except RequestError as error:
                status, text = error.status, error.message
            channel.say(say="done", id=said["id"], status=status, text=text)

    async def _beat(self, channel: Channel) -> None:
        """Say that the event loop is alive, and how far the models have come."""
        while True:
            versions = {model.name: model.version for model in self._app.repository.models()}
            channel.say(say="beat", ready=self._app.repository.complete, versions=versions)
            await asyncio.sleep(BEAT_S if self._app.repository.complete else BEAT_S / 20)


def main() -> None:
    """Serve as the supervisor's first line says, until a signal or the supervisor's end."""
    given: dict[str, Any] = json.loads(sys.stdin.readline())
    log_to_terminal(["--log-level", given["log_level"]])
    http, health, grpc = (None if number is None else socket.socket(fileno=number) for number in given["doors"])
    assert http is not None
    end = socket.socket(fileno=given["channel"])
    serving = Serving(
        given["url"],
        trust=given["trust"],
        grace_s=given["grace_s"],
        settings=ServerSettings.from_json(given["settings"]),
        doors=Doors(http, health, grpc),
    )
    serving.join(
        lambda app: Colleague(
            app, end, listens_at_once=given["at_once"], unloaded=frozenset(given["unloaded"]), pinned=given["pinned"]
        )
    )
    with contextlib.suppress(ShiplineError):  # the supervisor has been told
        serving.run()


if __name__ == "__main__":
    main()
