"""What a client did wrong, or found: an HTTP status and a short text that names no path, host or stack."""

from __future__ import annotations


class RequestError(Exception):
    """Ends a request with this status and text."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


def bad(message: str) -> RequestError:
    """Return the error for a malformed request."""
    return RequestError(400, message)


def overloaded(message: str) -> RequestError:
    """Return the error for a request that there is no room for now."""
    return RequestError(503, message, {"retry-after": "1"})
