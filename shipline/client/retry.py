"""When a request is repeated, and after what wait. Decides; the clients act.

Predictions have no side effects, so whatever may have been lost on the way is safe to repeat: connections that were
refused or broke, and the statuses of a server, or of a proxy before it, that could not answer now. Waits are drawn from
all of an interval that doubles ("full jitter": clients that failed together do not come back together,
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter), behind what the server itself asks for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic

import httpx

from shipline.client.requests import Reply

STATUSES = frozenset({429, 502, 503, 504})
FIRST_S = 0.1
LONGEST_S = 5.0

Outcome = Reply | httpx.TransportError

_draw = random.SystemRandom().random  # not that of `random` itself, which a user may have seeded for all clients alike


class Attempts:
    """The attempts at one call.

    Args:
        repeats: how many may follow the first.
        seconds: for all of them, with the waits between them.
        clock: a clock in seconds.
        draw: gives a number from 0 to 1.
    """

    def __init__(
        self,
        repeats: int,
        seconds: float,
        *,
        clock: Callable[[], float] = monotonic,
        draw: Callable[[], float] = _draw,
    ) -> None:
        self._repeats = repeats
        self._clock = clock
        self._draw = draw
        self._ends = clock() + seconds
        self._failed = 0

    @property
    def left(self) -> float:
        """The seconds that are left, never less than a millisecond."""
        return max(self._ends - self._clock(), 1e-3)

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self._clock() >= self._ends

    def wait(self, outcome: Outcome) -> float | None:
        """Return the seconds to wait before the next attempt; None where there is none, and this is the outcome."""
        if self._failed >= self._repeats or not _may_pass(outcome):
            return None
        wait = self._draw() * min(FIRST_S * 2**self._failed, LONGEST_S)
        if isinstance(outcome, Reply):
            wait += retry_after(outcome.headers.get("retry-after", ""))
        self._failed += 1
        return wait if wait < self._ends - self._clock() else None


def retry_after(text: str) -> float:
    """Return the seconds that a Retry-After header asks for; 0 where it says nothing that is understood."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max((when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)


def _may_pass(outcome: Outcome) -> bool:
    """Whether the same request may well get another answer."""
    if isinstance(outcome, Reply):
        return outcome.status in STATUSES
    return isinstance(outcome, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ConnectTimeout)
