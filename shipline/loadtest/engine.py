"""A load test from beginning to end: rows, their answers alone, the loads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from shipline.client.base import auth_of
from shipline.client.requests import Request
from shipline.errors import ConfigError, ServingError
from shipline.loadtest.http import BadAnswerError, to_bytes
from shipline.loadtest.loops import Caller, closed_loop, open_loop
from shipline.loadtest.results import Result
from shipline.loadtest.rows import Row, example, requests_of
from shipline.store import redact


@dataclass(frozen=True, kw_only=True)
class LoadTest:
    """What to ask, and how.

    Args:
        url: of the server.
        model: name of the model.
        version: a certain one; default: the one that the server chooses.
        rows: a file of rows; default: the example that the server publishes.
        rates: requests a second of open loops, one after the other; none is one closed loop.
        connections: at most; in a closed loop, so many at once.
        seconds: for each loop.
        timeout: seconds until a request is given up.
        tolerance: by how much numbers may differ from those of the same row asked alone, relative and absolute.
        api_key: sent with every request.
    """

    url: str
    model: str
    version: str | None = None
    rows: str | None = None
    rates: tuple[float, ...] = ()
    connections: int = 32
    seconds: float = 10.0
    timeout: float = 10.0
    tolerance: float = 1e-3
    api_key: str | None = None

    def __post_init__(self) -> None:
        positive = {"connections": self.connections, "seconds": self.seconds, "timeout": self.timeout}
        for name, value in (*positive.items(), *(("rate", rate) for rate in self.rates)):
            if not 0 < value < 1e6:
                raise ConfigError(f"{name} is {value:g}; it must be more than 0.")
        if not self.tolerance >= 0:
            raise ConfigError(f"tolerance is {self.tolerance:g}; it must be at least 0.")

    def run(self, told: Callable[[Result], None] = lambda result: None) -> list[Result]:
        """Run the loops; `told` hears of each as it ends.

        Raises:
            ServingError: the server is not reached, or does not answer a row that is asked alone.
            ConfigError: the rows cannot be read.
        """
        return _run(self._run(told))

    async def _run(self, told: Callable[[Result], None]) -> list[Result]:
        url = self._address()
        caller = Caller(url, self.connections, self.timeout)
        try:
            rows = await self._rows(caller, url)
            results = []
            for rate in self.rates or (None,):
                if rate is None:
                    results.append(await closed_loop(caller, rows, self.connections, self.seconds))
                else:
                    results.append(await open_loop(caller, rows, rate, self.seconds))
                told(results[-1])
            return results
        finally:
            caller.close()

    def _address(self) -> httpx.URL:
        try:
            url = httpx.URL(self.url.rstrip("/"))
        except httpx.InvalidURL as error:
            raise ConfigError(f"{redact(self.url)!r} is no URL of a server: {error}.") from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"{redact(self.url)!r} is no URL of a server; it begins with http:// or https://.")
        return url

    async def _rows(self, caller: Caller, url: httpx.URL) -> list[Row]:
        """Ask every row alone."""
        rows = []
        for request in await self._requests(caller, url):
            content, headers = request.build(self.timeout)
            message = self._message(url, request.method, request.path, content, headers)
            alone = await self._alone(caller, message)
            rows.append(Row(message, request, alone, redact(self.url), self.tolerance))
        return rows

    async def _requests(self, caller: Caller, url: httpx.URL) -> Sequence[Request[Any]]:
        if self.rows is not None:
            return requests_of(self.rows, self.model, self.version)
        answer = await self._alone(caller, self._message(url, "GET", "/openapi.json", b"", {}))
        try:
            return [example(httpx.Response(200, content=answer.body).json(), self.model, self.version)]
        except ValueError:
            raise ServingError(f"{redact(self.url)} publishes no example. Give rows: --rows FILE.") from None

    def _message(self, url: httpx.URL, method: str, path: str, content: bytes, headers: dict[str, str]) -> bytes:
        target = url.copy_with(raw_path=url.raw_path.rstrip(b"/") + path.encode())
        request = httpx.Request(method, target, content=content, headers={"accept": "*/*", **headers})
        auth = auth_of(url, self.api_key)
        return to_bytes(request if auth is None else next(auth.sync_auth_flow(request)))

    async def _alone(self, caller: Caller, message: bytes) -> Any:
        try:
            async with asyncio.timeout(self.timeout):
                return await caller.ask(message)
        except (OSError, BadAnswerError) as error:
            reason = "no answer in time" if isinstance(error, TimeoutError) else error
            raise ServingError(f"Cannot reach {redact(self.url)}: {reason}. Is the server running?") from error


def _run(work: Coroutine[Any, Any, list[Result]]) -> list[Result]:
    """Run it on the fastest event loop that is installed."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        new_event_loop = None
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)
