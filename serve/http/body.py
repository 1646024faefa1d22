"""Bodies on the way in and out: read within limits, unpacked, sent."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from shipline.serve.errors import RequestError, bad
from shipline.serve.http.cycle import WHOLE

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

MAX_BODY_BYTES = 64 << 20
# Answers from this size on are packed for clients that say they like that.
WORTH_PACKING_BYTES = 1 << 10

_ZLIB_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}
JSON = (b"content-type", b"application/json")
BINARY = (b"content-type", b"application/octet-stream")


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Return the body as it was sent; RequestError 413 as soon as it is known to be too large."""
    length = headers.get(b"content-length")
    if length is not None and (not length.isdigit() or int(length.lstrip(b"0") or 0) > MAX_BODY_BYTES):
        raise _too_large()
    chunks: list[bytes] = []
    total, more = 0, True
    while more:
        message = await receive()
        chunks.append(message.get("body", b""))
        total += len(chunks[-1])
        if total > MAX_BODY_BYTES:
            raise _too_large()
        more = message.get("more_body", False)
    if message["type"] == "http.disconnect":
        raise RequestError(400, "The body ended early.")
    return b"".join(chunks)  # of one chunk: that chunk itself


def encoding(headers: dict[bytes, bytes]) -> bytes | None:
    """Return how the body is packed, None if it is not; RequestError 415 for what is not unpacked here."""
    given = headers.get(b"content-encoding", b"identity").strip().lower()
    if given in (b"identity", b""):
        return None
    if given not in _ZLIB_WINDOW:
        raise RequestError(415, "Send the body as it is, or packed once by gzip or deflate.")
    return given


def unpacked(body: bytes, packed: bytes) -> bytes:
    """Return the body behind a Content-Encoding, counted while it is unpacked.

    Raises:
        RequestError: 413, it is larger than a body may be; 400, it is damaged; 415, something follows it.
    """
    unpacker = zlib.decompressobj(_ZLIB_WINDOW[packed])
    try:
        found = unpacker.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error:
        raise bad("The body is not packed as its Content-Encoding says.") from None
    if len(found) > MAX_BODY_BYTES:
        raise _too_large()
    if not unpacker.eof:
        raise bad("The packed body is cut off.")
    if unpacker.unused_data:
        raise RequestError(415, "The packed body has more than one part.")
    return found


def likes(headers: dict[bytes, bytes]) -> bytes | None:
    """Return what an answer to this client may be packed by."""
    accepted = headers.get(b"accept-encoding")
    if accepted is None:
        return None
    for item in accepted.lower().split(b","):
        name, _, weight = item.partition(b";")
        if name.strip() in (b"gzip", b"deflate") and weight.replace(b" ", b"").rstrip(b"0.") != b"q=":
            return name.strip()
    return None


def packed(body: bytes, by: bytes) -> bytes:
    """Return the body packed, fast rather than small."""
    packer = zlib.compressobj(1, zlib.DEFLATED, _ZLIB_WINDOW[by])
    return packer.compress(body) + packer.flush()


def respond(scope: Scope, send: Send, status: int, body: bytes, headers: RawHeaders) -> Awaitable[None]:
    """Send an answer, in one piece where the server takes that."""
    if "extensions" in scope and WHOLE in scope["extensions"]:
        return send({"type": WHOLE, "status": status, "headers": headers, "body": body})
    return _respond_in_two(send, status, body, headers)


async def _respond_in_two(send: Send, status: int, body: bytes, headers: RawHeaders) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})


def _too_large() -> RequestError:
    return RequestError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", {"connection": "close"})
