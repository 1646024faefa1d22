"""A request and its answer: uvicorn's, which writes an answer that is whole in one piece."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

if TYPE_CHECKING:
    from shipline.serve.http.body import RawHeaders

# The ASGI extension by which an application knows that `send` takes this message.
WHOLE = "shipline.response.whole"
_EXTENSIONS: dict[str, dict[object, object]] = {WHOLE: {}}


# Where an application puts its task into the scope, which is cancelled when nobody is there to be answered any more.
TASK, GONE = "shipline.task", "shipline.gone"

CLOSE = (b"connection", b"close")


def whole(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes, *, keep_alive: bool) -> bytes:
    """Return an answer as it is sent, head and body."""
    lines = [STATUS_LINE[status], b"content-length: %d\r\n" % len(body)]
    lines += [b"%b: %b\r\n" % header for header in headers if header != CLOSE]
    lines += (b"\r\n" if keep_alive else b"connection: close\r\n\r\n", body)
    return b"".join(lines)


class Cycle(RequestResponseCycle):
    """Takes, besides ASGI's messages, one with status, headers and the whole body.

    Two writes are two system calls, which is a sixth of what the server does for a small request. Headers of such a
    message come from the server's own code, and are not checked again.
    """

    async def send(self, message: Any) -> None:
        """Send a message."""
        if message["type"] != WHOLE:
            await super().send(message)
        elif not self.disconnected:
            if self.flow.write_paused:
                await self.flow.drain()
            self._send_whole(message["status"], message["headers"], message["body"])

    def _send_whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        if self.disconnected:
            return
        if CLOSE in headers:
            self.keep_alive = False
        answer = whole(status, (*self.default_headers, *headers), body, keep_alive=self.keep_alive)
        self.transport.write(answer[: -len(body)] if body and self.scope["method"] == "HEAD" else answer)
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def forget(cycle: RequestResponseCycle) -> None:
    """End what a cycle is being answered by: its client is gone."""
    cycle.disconnected = True
    cycle.message_event.set()
    scope: dict[str, Any] = cycle.scope  # type: ignore[assignment]
    task = scope.get(TASK)
    if task is not None:
        scope[GONE] = True
        task.cancel()


def taking_whole(cycle: RequestResponseCycle) -> None:
    """Let a cycle that uvicorn has made take whole answers, and its application know."""
    cycle.__class__ = Cycle
    cycle.scope["extensions"] = _EXTENSIONS
