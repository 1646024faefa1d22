"""A client for servers of Shipline, and for any that speak the Open Inference Protocol v2 in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import numpy as np

from shipline.errors import ConfigError, NotFoundError, ServingError
from shipline.signature import OIP_DATATYPES
from shipline.store import redact

DTYPES = {oip: dtype for dtype, oip in OIP_DATATYPES.items()}
_MEDIA_TYPES = {
    ".bmp": "image/bmp", ".gif": "image/gif", ".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".png": "image/png",
    ".tif": "image/tiff", ".tiff": "image/tiff", ".webp": "image/webp",
}  # fmt: skip


class Client:
    """Asks one server. Connections are kept; use as a context manager, or call `close`.

    Args:
        url: of the server, such as http://127.0.0.1:8000.
        timeout: seconds for a whole request.
    """

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        self._url = url.rstrip("/")
        try:
            self._http = httpx.Client(base_url=self._url, timeout=timeout)
        except httpx.InvalidURL as error:
            raise ConfigError(f"{redact(url)!r} is no URL of a server: {error}.") from error

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
        try:
            return self._http.get("/v2/health/ready").is_success
        except httpx.HTTPError:
            return False

    def metadata(self, model: str, version: str | None = None) -> dict[str, Any]:
        """Return the model's signature, metrics, verdicts and lineage."""
        answer: dict[str, Any] = self._ask("GET", f"/v2/models/{_path(model, version)}")
        return answer

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
        path = f"/models/{_path(model, version)}/predict"
        answer: dict[str, Any]
        if isinstance(raw, bytes):
            answer = self._ask("POST", path, content=raw, headers={"content-type": "application/octet-stream"})
        elif isinstance(raw, Path):
            answer = self._ask("POST", path, content=_read(raw), headers={"content-type": _media_type(raw)})
        else:
            answer = self._ask("POST", path, json=raw)
        return answer

    def infer(
        self, model: str, inputs: Mapping[str, np.ndarray], *, version: str | None = None
    ) -> dict[str, np.ndarray]:
        """Return the outputs for tensors with a batch dimension.

        Raises:
            ServingError: the server refused the input, or was not reached; the message is the server's.
        """
        tensors = [_tensor(name, array) for name, array in inputs.items()]
        answer = self._ask("POST", f"/v2/models/{_path(model, version)}/infer", json={"inputs": tensors})
        return {
            tensor["name"]: np.array(tensor["data"], DTYPES[tensor["datatype"]]).reshape(tensor["shape"])
            for tensor in answer["outputs"]
        }

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise ServingError(
                f"Cannot reach {redact(self._url)}: {str(error) or type(error).__name__}. Is the server running?"
            ) from error
        except (TypeError, ValueError) as error:
            raise ServingError(f"The input is no JSON value: {error}.") from error
        try:
            document = answer.json()
            if answer.is_success:
                return document
            message = document["error"]
        except (ValueError, KeyError, TypeError):
            message = "no JSON. Is it a model server?" if answer.is_success else answer.reason_phrase
        raise ServingError(f"{redact(self._url)} answered {answer.status_code}: {message}")


def _path(model: str, version: str | None) -> str:
    name = quote(model, safe="")
    return name if version is None else f"{name}/versions/{quote(version, safe='')}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"Cannot read {str(path)!r}: {error.strerror}. Check the path.") from error


def _media_type(path: Path) -> str:
    return (
        "application/json"
        if path.suffix == ".json"
        else _MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
    )


def _tensor(name: str, array: np.ndarray) -> dict[str, Any]:
    if array.dtype.name not in OIP_DATATYPES:
        raise ServingError(f"{name!r} is {array.dtype.name}; tensors can be {', '.join(OIP_DATATYPES)}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ServingError(f"{name!r} has NaN or infinities, which JSON cannot hold.")
    return {
        "name": name,
        "shape": list(array.shape),
        "datatype": OIP_DATATYPES[array.dtype.name],
        "data": array.ravel().tolist(),
    }
