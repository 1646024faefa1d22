"""What a request passes before any endpoint: its Host is ours, and its sender may do this."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence

from starlette.routing import Match

from shipline.errors import ConfigError
from shipline.serve.access import Access
from shipline.serve.errors import RequestError, bad
from shipline.serve.http.app import Application
from shipline.serve.http.body import Receive, Scope, Send, respond
from shipline.serve.http.endpoints import InferEndpoint, error_answer, request_id

App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = frozenset({"/v2/health/live", "/v2/health/ready", "/ping"})

_HOST = re.compile(rb"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_REMEMBERED = 256


class Hosts:
    """The names that a request may have in its Host header: a page elsewhere cannot make its own name lead here.

    Args:
        allowed: names without a port; None or '*' is any.

    Raises:
        ConfigError: a name is none.
    """

    def __init__(self, allowed: Sequence[str] | None) -> None:
        self._allowed: frozenset[bytes] | None = None
        self._good: set[bytes] = set()
        if allowed is not None and "*" not in allowed:
            self._allowed = frozenset(_checked(name) for name in allowed)

    def knows(self, host: bytes) -> bool:
        """Return whether a Host header has been found good before."""
        return host in self._good

    def check(self, scope: Scope) -> None:
        """Raise RequestError 400 unless the request names one host, and one of these."""
        found = [value for name, value in scope["headers"] if name == b"host"]
        if len(found) == 1 and found[0] in self._good:
            return
        if not found and scope["http_version"] == "1.0":
            return
        match = _HOST.fullmatch(found[0]) if len(found) == 1 else None
        if match is None:
            raise bad("A request needs one Host header, and a name or an address in it.")
        if self._allowed is not None and match[1].lower() not in self._allowed:
            raise bad("This server does not answer to that Host.")
        if len(self._good) < _REMEMBERED:
            self._good.add(found[0])


def hosts_of(address: str) -> tuple[str, ...] | None:
    """Return the names that a server listening on this address goes by; None where anything may lead to it."""
    if not ipaddress.ip_address(address).is_loopback:
        return None
    return (*_LOOPBACK, f"[{address}]" if ":" in address else address)


def _checked(name: str) -> bytes:
    match = _HOST.fullmatch(name.encode())
    if match is None or match[2]:
        raise ConfigError(f"allowed_hosts has {name!r}; give names or addresses without a port, such as example.com.")
    return match[1].lower()


class Gate:
    """Stands before the application."""

    def __init__(self, app: Application, hosts: Hosts, access: Access) -> None:
        self._app = app
        self._hosts = hosts
        self._access = access
        self._open = access.open

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except RequestError as error:
                return refuse(error, scope, send)
        return self._app(scope, receive, send)

    def direct(self, path: bytes, host: bytes) -> InferEndpoint | None:
        """Return the endpoint that tensors go to at this path, where a request for this host needs no look at it."""
        return self._app.direct.get(path) if self._open and self._hosts.knows(host) else None

    def _check(self, scope: Scope) -> None:
        path: str = scope["path"]
        if path in HEALTH:  # who probes knows an address alone, and learns nothing
            return
        self._hosts.check(scope)
        if self._open and path in self._app.predictions:
            return
        client = scope["client"]
        self._access.authorise(self._routes(scope), scope["headers"], client[0] if client else "")

    def _routes(self, scope: Scope) -> Iterable[str]:
        """Every route that takes the path, whatever the method: the strictest of them counts."""
        if scope["path"] in self._app.predictions:
            return ("/v2/models/{name}/infer",)
        return [getattr(route, "path", "?") for route in self._app.routes if route.matches(scope)[0] is not Match.NONE]


def only(paths: frozenset[str], app: App, otherwise: RequestError) -> App:
    """Return the application for these paths, and this error for all others."""

    def answer(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        return app(scope, receive, send) if scope["path"] in paths else refuse(otherwise, scope, send)

    return answer


async def refuse(error: RequestError, scope: Scope, send: Send) -> None:
    """Answer with the error."""
    body, headers = error_answer(error, request_id(dict(scope["headers"])))
    await respond(scope, send, error.status, body, headers)
