"""What the clients have in common: settings, checked; and how an outcome becomes an answer or an error."""

from __future__ import annotations

import ssl
from collections.abc import Generator
from os import PathLike
from typing import Any, Generic, TypeVar

import httpx

from shipline.client.requests import Reply, Request, answer
from shipline.client.retry import Attempts, Outcome
from shipline.errors import ConfigError, ServingError
from shipline.store import redact

# Shorter than the five seconds after which uvicorn closes a connection, which would meet a request on its way.
KEEPALIVE_S = 4.0

T = TypeVar("T")
H = TypeVar("H", httpx.Client, httpx.AsyncClient)


class BaseClient(Generic[H]):
    """A client of one server, which keeps its connections; `H` is the client of httpx that it sends with."""

    _kind: type[H]

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 30.0,
        binary: bool = True,
        retries: int = 3,
        connections: int = 32,
        api_key: str | None = None,
        verify: bool | str | PathLike[str] | ssl.SSLContext = True,
    ) -> None:
        """Take the settings; nothing is sent yet.

        Args:
            url: of the server, such as http://127.0.0.1:8000.
            timeout: seconds for a whole call, with all attempts and the waits between them. With tensors, the server is
                told what is left of them, in the request parameter `timeout`.
            binary: send tensors as bytes and ask for bytes; False for servers that take only JSON.
            retries: how often a request is repeated that was not answered, or with 429, 502, 503 or 504.
            connections: how many there are at most; so many requests run at once.
            api_key: sent as `Authorization: Bearer`; stands in no message.
            verify: whether the server's certificate is checked; or a file of those who are trusted to sign it; or a
                context.

        Raises:
            ConfigError: a setting is wrong.
        """
        for name, value, least in (("retries", retries, 0), ("connections", connections, 1)):
            if value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")
        if not timeout > 0:
            raise ConfigError(f"timeout is {timeout}; it must be more than 0 seconds.")
        self._url = url.rstrip("/")
        self._shown = redact(self._url)
        self._timeout = timeout
        self._binary = binary
        self._retries = retries
        self._connections = connections
        self._http: H = self._kind(**self._httpx_options(api_key, verify))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r})"

    def _httpx_options(self, api_key: str | None, verify: Any) -> dict[str, Any]:
        try:
            url = httpx.URL(self._url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{self._shown!r} is no URL of a server: {error}.") from error
        return {
            "auth": auth_of(url, api_key),
            "base_url": url.copy_with(userinfo=b"") if url.userinfo else url,  # httpx logs it
            "limits": httpx.Limits(
                max_connections=self._connections,
                max_keepalive_connections=self._connections,
                keepalive_expiry=KEEPALIVE_S,
            ),
            "verify": _verify(verify),
        }

    def _attempts(self) -> Attempts:
        return Attempts(self._retries, self._timeout)

    def _answer(self, request: Request[T], outcome: Outcome, attempts: Attempts) -> T:
        if isinstance(outcome, Reply):
            return answer(request, outcome, self._shown)
        if isinstance(outcome, httpx.TimeoutException) and attempts.over:
            raise ServingError(f"{self._shown} gave no answer within {self._timeout:g} s.") from outcome
        raise ServingError(
            f"Cannot reach {self._shown}: {str(outcome) or type(outcome).__name__}. Is the server running?"
        ) from outcome


def reply_of(response: httpx.Response, body: bytes) -> Reply:
    """Return what of a response of httpx counts."""
    return Reply(response.status_code, response.headers, body, response.reason_phrase)


class _Bearer(httpx.Auth):
    """Adds a key to requests, and shows it nowhere else."""

    def __init__(self, key: str) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["authorization"] = f"Bearer {self._key}"
        yield request


def auth_of(url: httpx.URL, api_key: str | None) -> httpx.Auth | None:
    """Return what adds the credentials to requests: the key, or the name and password in the URL.

    Raises:
        ConfigError: the key is none.
    """
    if api_key is None:
        return httpx.BasicAuth(url.username, url.password) if url.userinfo else None
    if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ConfigError("api_key is empty, or has characters that no key has. Check where it was read from.")
    return _Bearer(api_key)


def _verify(verify: Any) -> Any:
    if isinstance(verify, bool | ssl.SSLContext):
        return verify
    try:
        return ssl.create_default_context(cafile=verify)
    except OSError as error:
        raise ConfigError(f"verify is {str(verify)!r}, which is no file of certificates: {error}.") from error
