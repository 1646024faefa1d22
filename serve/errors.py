"""What a client did wrong, or found: an HTTP status and a short text that names no path, host or stack."""

from __future__ import annotations

from collections.abc import Callable

from shipline.backends.base import Arrays
from shipline.errors import ServingError


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


def late() -> RequestError:
    """Return the error for a request whose time is over."""
    return RequestError(504, "There was no answer in time.")


class MemoryLimitError(ServingError):
    """A model would take more memory than the operator has allowed."""


class BackendError(ServingError):
    """What a backend in a process of its own raised, or did to that process."""


class BackendLostError(BackendError):
    """A backend's process ended while it computed this, and maybe other things: nobody knows yet which of them did it.

    Args:
        again: runs the same in the next process, alone.
    """

    def __init__(self, again: Callable[[Arrays], Arrays]) -> None:
        super().__init__("The backend's process ended.")
        self.again = again
