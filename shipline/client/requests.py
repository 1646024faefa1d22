"""What a client sends and how it reads what comes back: pure functions, shared by all clients.

Tensors go in the Open Inference Protocol's JSON, or as bytes behind it (Triton's binary tensor extension).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import numpy as np
import orjson

from shipline.errors import NotFoundError, ServingError
from shipline.signature import BYTES, DATATYPES
from shipline.wire import elements_from_raw, to_raw

DTYPES = {oip: np.dtype(dtype) for dtype, oip in DATATYPES.items()}
PICTURES = {
    ".bmp": "image/bmp", ".gif": "image/gif", ".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".png": "image/png",
    ".tif": "image/tiff", ".tiff": "image/tiff", ".webp": "image/webp",
}  # fmt: skip

_JSON = {"content-type": "application/json"}
_BYTES = {"content-type": "application/octet-stream"}
_JSON_LENGTH = "inference-header-content-length"

Arrays = dict[str, np.ndarray]
Message = tuple[bytes, dict[str, str]]  # body and headers
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; the names of the headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """Something to ask: `build` makes body and headers for the seconds that are left, `read` the answer of a reply."""

    method: str
    path: str
    build: Callable[[float], Message]
    read: Callable[[Reply], T]


def metadata(model: str, version: str | None) -> Request[dict[str, Any]]:
    """Return the request for a model's metadata."""
    return Request("GET", f"/v2/models/{_path(model, version)}", _always(b"", {}), _document)


def ready() -> Request[bool]:
    """Return the request for the server's readiness."""
    return Request("GET", "/v2/health/ready", _always(b"", {}), lambda reply: True)


def models() -> Request[list[dict[str, Any]]]:
    """Return the request for the state of every model."""
    return Request("POST", "/v2/repository/index", _always(b"{}", _JSON), _document)


def change(model: str, action: str) -> Request[None]:
    """Return the request to `load` or to `unload` a model."""
    path = f"/v2/repository/models/{_path(model, None)}/{action}"
    return Request("POST", path, _always(b"{}", _JSON), lambda reply: None)


def predict(model: str, raw: bytes | Path | Any, version: str | None) -> Request[dict[str, Any]]:
    """Return the request for the answer to a raw input.

    Raises:
        NotFoundError: `raw` is the path of no file.
        ServingError: `raw` is no JSON value.
    """
    if isinstance(raw, bytes):
        message: Message = raw, _BYTES
    elif isinstance(raw, Path):
        message = _read(raw), {"content-type": _media_type(raw)}
    else:
        try:
            message = json.dumps(raw, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(), _JSON
        except (TypeError, ValueError, RecursionError) as error:
            raise ServingError(f"The input is no JSON value: {error}.") from error
    return Request("POST", f"/models/{_path(model, version)}/predict", _always(*message), _document)


def infer(model: str, inputs: Mapping[str, np.ndarray], version: str | None, *, binary: bool) -> Request[Arrays]:
    """Return the request for the outputs for tensors.

    Raises:
        ServingError: an array has a dtype, or a value, that cannot be sent.
    """
    pieces: list[bytes | memoryview] = []
    tensors = [_tensor(name, array, pieces if binary else None) for name, array in inputs.items()]

    def build(seconds: float) -> Message:
        parameters: dict[str, Any] = {"timeout": max(int(seconds * 1e6), 1)}  # microseconds, as Triton has it
        document = {"inputs": tensors, "parameters": parameters}
        if not binary:
            return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), _JSON
        parameters["binary_data_output"] = True
        head = orjson.dumps(document)
        # Numbers hardly get smaller by packing, and it takes longer than the model.
        headers = {**_BYTES, _JSON_LENGTH: str(len(head)), "accept-encoding": "identity"}
        return b"".join([head, *pieces]), headers

    return Request("POST", f"/v2/models/{_path(model, version)}/infer", build, _outputs)


def answer(request: Request[T], reply: Reply, url: str) -> T:
    """Return what the request asked for.

    Args:
        request: what was asked.
        reply: what came back.
        url: of the server, as it may stand in a message.

    Raises:
        ServingError: the server refused; the message is the server's.
    """
    if 200 <= reply.status < 300:
        try:
            return request.read(reply)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            says = "no JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else "no such tensors"
            raise ServingError(f"{url} answered {reply.status}: {says}. Is it a model server?") from error
    try:
        message = _document(reply)["error"]
    except (LookupError, TypeError, ValueError):
        message = reply.reason
    raise ServingError(f"{url} answered {reply.status}: {message}")


def tensors_of(items: list[dict[str, Any]], raw: memoryview = memoryview(b"")) -> Arrays:  # noqa: B008 -- read only
    """Return the arrays that the protocol's tensors describe, with those of them that are bytes behind the JSON."""
    arrays: Arrays = {}
    for item in items:
        size = (item.get("parameters") or {}).get("binary_data_size")
        if size is None:
            flat = _from_json(item["data"], DTYPES[item["datatype"]])
        else:
            flat, raw = _from_bytes(raw[:size], item), raw[size:]
        arrays[item["name"]] = flat.reshape(item["shape"])
    return arrays


def _outputs(reply: Reply) -> Arrays:
    length = reply.headers.get(_JSON_LENGTH)
    head = len(reply.body) if length is None else int(length)
    return tensors_of(_loads(reply.body[:head])["outputs"], memoryview(reply.body)[head:])


def _from_json(data: list[Any], dtype: np.dtype) -> np.ndarray:
    if dtype == np.object_:
        texts = np.empty(len(data), object)
        texts[:] = [text.encode() for text in data]  # what the binary form has
        return texts
    return np.array(data, dtype)  # null becomes NaN


def _from_bytes(data: memoryview, item: dict[str, Any]) -> np.ndarray:
    dtype = DTYPES[item["datatype"]]
    if dtype == np.object_:
        return elements_from_raw(data, int(np.prod(item["shape"])))
    return np.frombuffer(data, dtype).copy()  # the caller's own, to write to


def _tensor(name: str, array: np.ndarray, pieces: list[bytes | memoryview] | None) -> dict[str, Any]:
    """Describe an array; its bytes are added to the pieces, where there are any."""
    if not isinstance(array, np.ndarray | np.generic):  # a tensor of torch, a list
        raise ServingError(f"{name!r} is of type {type(array).__name__}; give it as an array of NumPy's.")
    if array.dtype.name not in DATATYPES or (array.dtype == np.object_ and not _are_elements(array)):
        numbers = ", ".join(name for name in DATATYPES if name != BYTES)
        raise ServingError(f"{name!r} is {array.dtype.name}; tensors can be {numbers}, or objects: all bytes or str.")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    tensor = {"name": name, "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}
    if pieces is None:
        return tensor | {"data": _json_values(name, array)}
    pieces.append(to_raw(array))
    return tensor | {"parameters": {"binary_data_size": len(pieces[-1])}}


def _are_elements(array: np.ndarray) -> bool:
    return all(isinstance(element, bytes | str) for element in array.ravel())


def _json_values(name: str, array: np.ndarray) -> Any:
    if array.dtype == np.object_:
        try:
            return [text if isinstance(text, str) else text.decode() for text in array.ravel()]
        except UnicodeDecodeError:
            raise ServingError(f"{name!r} has bytes that are no UTF-8, which JSON cannot hold.") from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ServingError(f"{name!r} has NaN or infinities, which JSON cannot hold.")
    return np.ascontiguousarray(array).ravel()


def _document(reply: Reply) -> Any:
    return _loads(reply.body)


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return json.loads(body)  # which knows NaN: there are servers that write it


def _always(content: bytes, headers: dict[str, str]) -> Callable[[float], Message]:
    return lambda seconds: (content, headers)


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
        "application/json" if path.suffix == ".json" else PICTURES.get(path.suffix.lower(), "application/octet-stream")
    )
