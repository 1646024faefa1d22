"""The client for asyncio."""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np

from shipline.client import requests
from shipline.client.base import BaseClient, reply_of
from shipline.client.requests import Request
from shipline.client.retry import Outcome
from shipline.errors import ShiplineError

T = TypeVar("T")


class AsyncClient(BaseClient[httpx.AsyncClient]):
    """Asks one server from asyncio: `Client`'s twin. Tasks may share it.

    Use as an asynchronous context manager, or call `close`.
    """

    _kind = httpx.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ready(self) -> bool:
        """Whether the server is reached and every model takes traffic."""
        outcome = await self._once(requests.ready(), self._timeout)
        return isinstance(outcome, requests.Reply) and outcome.status == 200

    async def metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        """Return the model's signature, metrics, verdicts and lineage."""
        return await self._ask(requests.metadata(model, version))

    async def models(self) -> list[dict[str, Any]]:
        """Return name, version and state of every model."""
        return await self._ask(requests.models())

    async def load(self, model: str) -> None:
        """Have the version loaded that is stable now, beside the one that answers until then.

        Raises:
            ServingError: it does not load, or does not prove itself; the one that answered goes on.
        """
        await self._ask(requests.change(model, "load"))

    async def unload(self, model: str) -> None:
        """Have a model answer no more.

        Raises:
            ServingError: there is no such model.
        """
        await self._ask(requests.change(model, "unload"))

    async def predict(self, model: str, raw: bytes | Path | Any, *, version: str | None = None) -> dict[str, Any]:
        """Return the answer to a raw input, as `Client.predict` does.

        Raises:
            ServingError: the server refused the input, or was not reached; the message is the server's.
            NotFoundError: `raw` is the path of no file.
        """
        if isinstance(raw, Path):
            return await self._ask(await asyncio.to_thread(requests.predict, model, raw, version))
        return await self._ask(requests.predict(model, raw, version))

    async def predict_many(
        self, model: str, raws: Iterable[Any], *, version: str | None = None, return_errors: bool = False
    ) -> list[Any]:
        """Return the answers to raw inputs, in their order, as `Client.predict_many` does.

        Raises:
            ShiplineError: that of an input that failed; the others are left.
        """
        places = asyncio.Semaphore(self._connections)

        async def ask(raw: Any) -> Any:
            async with places:
                try:
                    return await self.predict(model, raw, version=version)
                except ShiplineError as error:
                    if return_errors:
                        return error
                    raise

        asked = [asyncio.ensure_future(ask(raw)) for raw in raws]
        try:
            return await asyncio.gather(*asked)
        finally:
            for task in asked:
                task.cancel()

    async def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], *, version: str | None = None
    ) -> dict[str, np.ndarray]:
        """Return the outputs for tensors with a batch dimension; BYTES are arrays of objects, bytes or str.

        Raises:
            ServingError: the server refused the input, or was not reached; the message is the server's.
        """
        return await self._ask(requests.infer(model, inputs, version, binary=self._binary))

    async def _ask(self, request: Request[T]) -> T:
        attempts = self._attempts()
        while True:
            outcome = await self._once(request, attempts.left)
            wait = attempts.wait(outcome)
            if wait is None:
                return self._answer(request, outcome, attempts)
            await sleep(wait)

    async def _once(self, request: Request[T], seconds: float) -> Outcome:
        content, headers = request.build(seconds)
        try:
            async with asyncio.timeout(seconds):
                response = await self._http.request(
                    request.method, request.path, content=content, headers=headers, timeout=None
                )
        except TimeoutError:
            return httpx.ReadTimeout("")
        except httpx.TransportError as error:
            return error
        return reply_of(response, response.content)
