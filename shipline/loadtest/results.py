"""What a run of load came to."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
RIGHT, WRONG, TIMEOUT = "right", "wrong", "timeout"


def _seconds() -> array[float]:
    return array("d")


@dataclass
class Result:
    """What came back, counted; and how long it took.

    Latencies are those of answers with status 200, and of requests that were given up, with the time until then: left
    out, the slowest would make the rest look fast. Answers that refuse are counted, and have no part in latencies.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)  # right, wrong, the status, or what went wrong -> requests
    latencies: array[float] = field(default_factory=_seconds)
    late: array[float] = field(default_factory=_seconds)  # how far the generator itself was behind its schedule
    seconds: float = 0.0

    @property
    def sent(self) -> int:
        """All requests."""
        return self.counts.total()

    @property
    def throughput(self) -> float:
        """Answers a second, whatever they said."""
        return sum(n for name, n in self.counts.items() if name in (RIGHT, WRONG) or name.isdigit()) / self.seconds

    @property
    def goodput(self) -> float:
        """Right answers a second."""
        return self.counts[RIGHT] / self.seconds

    def percentiles(self) -> dict[str, float | None]:
        """Return latencies in milliseconds, each of a request that there was; None where there was none."""
        return {name: _quantile(self.latencies, q) for name, q in QUANTILES.items()}

    @property
    def generator_late_ms(self) -> float:
        """How late the generator sent, at the 99th percentile: more than a little, and it is what was measured."""
        return _quantile(self.late, 0.99) or 0.0

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            "load": self.name,
            "seconds": self.seconds,
            "sent": self.sent,
            "counts": dict(self.counts),
            "throughput": self.throughput,
            "goodput": self.goodput,
            "latency_ms": self.percentiles(),
            "generator_late_ms": self.generator_late_ms,
        }


def _quantile(seconds: array[float], q: float) -> float | None:
    return float(np.quantile(seconds, q, method="inverted_cdf")) * 1e3 if seconds else None
