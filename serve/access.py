"""Who may do what. Decided on the route that will answer, never on what was asked for as it was written."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from shipline.serve.errors import RequestError
from shipline.serve.keys import Keys, Role

Headers = Iterable[tuple[bytes, bytes]]

# A route that is not here takes an admin key, so that a new one is closed until somebody has thought about it.
NEEDS = {
    **dict.fromkeys(("/v2/health/live", "/v2/health/ready", "/ping"), Role.ANYONE),
    **dict.fromkeys(("/v2", "/v2/", "/v2/models/stats", "/v2/repository/index"), Role.INFERENCE),
    **{
        f"/v2/models/{{name}}{version}{what}": Role.INFERENCE
        for version in ("", "/versions/{version}")
        for what in ("", "/ready", "/config", "/stats", "/infer")
    },
    **dict.fromkeys(("/models/{name}/predict", "/models/{name}/versions/{version}/predict"), Role.INFERENCE),
    **dict.fromkeys(("/v1/models", "/v1/models/{name}", "/v1/models/{action}", "/invocations"), Role.INFERENCE),
    **dict.fromkeys(("/metrics", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"), Role.INFERENCE),
    **dict.fromkeys(("/v2/repository/models/{name}/load", "/v2/repository/models/{name}/unload"), Role.ADMIN),
    # gRPC's methods
    **dict.fromkeys(("ServerLive", "ServerReady"), Role.ANYONE),
    **dict.fromkeys(
        ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"), Role.INFERENCE
    ),
    **dict.fromkeys(("ModelInfer", "ModelStreamInfer", "RepositoryIndex"), Role.INFERENCE),
    **dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), Role.ADMIN),
}

_WRONG_TRIES = 20
_WINDOW_S = 60.0
_MAX_CLIENTS = 4096


class WrongTries:
    """How often each client has sent a wrong key in the last minute; of so many clients at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def count(self, client: str) -> bool:
        """Count one more; return whether it is too many."""
        now = self._clock()
        began, tries = self._clients.pop(client, (now, 0))
        if now - began > _WINDOW_S:
            began, tries = now, 0
        self._clients[client] = (began, tries + 1)
        if len(self._clients) > _MAX_CLIENTS:
            self._clients.popitem(last=False)
        return tries >= _WRONG_TRIES


class Access:
    """Lets somebody through, or not.

    Args:
        keys: the keys that are good for something; None lets anybody do what changes nothing.
        admin_without_key: without keys, let anybody do everything.
    """

    def __init__(self, keys: Keys | None = None, *, admin_without_key: bool = False) -> None:
        self._keys = keys
        self._admin_without_key = admin_without_key
        self._wrong = WrongTries()

    @property
    def open(self) -> bool:
        """Whether predictions need no key."""
        return self._keys is None

    def authorise(self, routes: Iterable[str], headers: Headers, client: str) -> None:
        """Let a request pass.

        Args:
            routes: that match it, as keys of `NEEDS`; none where there is nothing to be found.
            headers: of the request, their names in lower case.
            client: its address.

        Raises:
            RequestError: 401, no key or a wrong one; 403, it is not good for this; 429, too many wrong ones.
        """
        needed = max((NEEDS.get(route, Role.ADMIN) for route in routes), default=Role.INFERENCE)
        if needed is Role.ANYONE:
            return
        if self._keys is None:
            self._check_without_key(needed, headers)
            return
        key = _key(headers)
        if key is None:
            raise _unauthorised("This needs a key: send it as 'Authorization: Bearer KEY'.")
        role = self._keys.role(key)
        # A right key passes however many wrong ones came from its address: behind a proxy that is everybody's address.
        if role is Role.ANYONE:
            if self._wrong.count(client):
                raise RequestError(429, "Too many wrong keys. Try again in a minute.", {"retry-after": "60"})
            raise _unauthorised("There is no such key.")
        if role < needed:
            raise RequestError(403, "This needs an admin key.")

    def _check_without_key(self, needed: Role, headers: Headers) -> None:
        if needed is not Role.ADMIN:
            return
        if not self._admin_without_key:
            raise RequestError(403, "This needs an admin key, and the server was started without keys.")
        if any(name in (b"origin", b"sec-fetch-site") for name, _ in headers):
            raise RequestError(403, "This cannot be done from a web page.")


def _key(headers: Headers) -> bytes | None:
    """The first key among the headers."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                return key.strip()
    return None


def _unauthorised(message: str) -> RequestError:
    return RequestError(401, message, {"www-authenticate": "Bearer"})
