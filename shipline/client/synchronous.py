"""The client for scripts and threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
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


class Client(BaseClient[httpx.Client]):
    """Asks one server of Shipline, or any that speaks the Open Inference Protocol v2. Threads may share it.

    Use as a context manager, or call `close`.
    """

    _kind = httpx.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether the server is reached and every model takes traffic."""
        outcome = self._once(requests.ready(), self._timeout)
        return isinstance(outcome, requests.Reply) and outcome.status == 200

    def metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        """Return the model's signature, metrics, verdicts and lineage."""
        return self._ask(requests.metadata(model, version))

    def models(self) -> list[dict[str, Any]]:
        """Return name, version and state of every model."""
        return self._ask(requests.models())

    def load(self, model: str) -> None:
        """Have the version loaded that is stable now, beside the one that answers until then.

        Raises:
            ServingError: it does not load, or does not prove itself; the one that answered goes on.
        """
        self._ask(requests.change(model, "load"))

    def unload(self, model: str) -> None:
        """Have a model answer no more.

        Raises:
            ServingError: there is no such model.
        """
        self._ask(requests.change(model, "unload"))

    def predict(self, model: str, raw: bytes | Path | Any, *, version: str | None = None) -> dict[str, Any]:
        """Return the answer to a raw input.

        Args:
            model: name of the model.
            raw: bytes of a file, the Path of a file, or a value that is sent as JSON. A text is a value, whatever
                files there are: it may come from anybody.
            version: a certain one; default: the one that the server chose.

        Raises:
            ServingError: the server refused the input, or was not reached; the message is the server's.
            NotFoundError: `raw` is the path of no file.
        """
        return self._ask(requests.predict(model, raw, version))

    def predict_many(
        self, model: str, raws: Iterable[Any], *, version: str | None = None, return_errors: bool = False
    ) -> list[Any]:
        """Return the answers to raw inputs, in their order; as many are asked at once as there are connections.

        Args:
            model: name of the model.
            raws: the inputs, each as `predict` takes it.
            version: a certain one; default: the one that the server chose.
            return_errors: put the error of an input in its place, rather than raise the first.

        Raises:
            ShiplineError: that of the first input that failed.
        """

        def ask(raw: Any) -> Any:
            try:
                return self.predict(model, raw, version=version)
            except ShiplineError as error:
                if return_errors:
                    return error
                raise

        with ThreadPoolExecutor(self._connections) as pool:
            asked = [pool.submit(ask, raw) for raw in raws]
            try:
                return [future.result() for future in asked]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], *, version: str | None = None
    ) -> dict[str, np.ndarray]:
        """Return the outputs for tensors with a batch dimension; BYTES are arrays of objects, bytes or str.

        Raises:
            ServingError: the server refused the input, or was not reached; the message is the server's.
        """
        return self._ask(requests.infer(model, inputs, version, binary=self._binary))

    def _ask(self, request: Request[T]) -> T:
        attempts = self._attempts()
        while True:
            outcome = self._once(request, attempts.left)
            wait = attempts.wait(outcome)
            if wait is None:
                return self._answer(request, outcome, attempts)
            sleep(wait)

    def _once(self, request: Request[T], seconds: float) -> Outcome:
        content, headers = request.build(seconds)
        ends = monotonic() + seconds
        try:
            with self._http.stream(
                request.method, request.path, content=content, headers=headers, timeout=seconds
            ) as response:
                return reply_of(response, b"".join(_in_time(response, ends)))
        except httpx.TransportError as error:
            return error


def _in_time(response: httpx.Response, ends: float) -> Iterator[bytes]:
    """Give the body's pieces: httpx waits for each anew, so that a slow one could take for ever."""
    for piece in response.iter_bytes():
        if monotonic() > ends:
            raise httpx.ReadTimeout("", request=response.request)
        yield piece
