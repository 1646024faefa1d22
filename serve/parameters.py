"""Parameters of requests, named as Triton does, whatever the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shipline.serve.errors import bad
from shipline.serve.jobs import LAST, NORMAL
from shipline.serve.tensors import short

# Memory of the server's own machine, and an answer of another form than the signature says.
NOT_HERE = frozenset({"shared_memory_region", "classification"})
# What Triton's load call may carry besides: files and settings of the caller's choice. Not here.
HARMLESS = frozenset({"unload_dependents"})
MAX_TIMEOUT_US = 24 * 3600 * 10**6  # what is longer is no wait; and floats have an end


def terms(parameters: Mapping[str, Any]) -> tuple[int, float | None]:
    """Return priority and seconds of patience, as Triton names them: 1 goes first and 0 is the usual; microseconds."""
    found = []
    for name in ("priority", "timeout"):
        value = parameters.get(name)
        if value is None:
            value = 0
        if type(value) is not int or value < 0:
            raise bad(f"The parameter {name!r} must be a whole number from 0; got {short(value)}.")
        found.append(value)
    priority, timeout = found
    return min(priority, LAST) or NORMAL, min(timeout, MAX_TIMEOUT_US) / 1e6 or None
