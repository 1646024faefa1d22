"""A candidate: a file that was made one way, and what the gates say of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shipline.artifact import Verdict
from shipline.export import gates
from shipline.export.comparison import Comparison
from shipline.export.latency import Latency
from shipline.export.plan import Plan
from shipline.export.runtime import Runtime
from shipline.export.trained import Trained


@dataclass
class Candidate:
    """A file on its way through the gates.

    Args:
        plan: how it was made.
        trained: the module whose answers it must give.
        file: where it is; gone once the proof is.
        size: of the file, in bytes.
        max_batch_size: the largest batch that servers will make.
        notes: what passes noted down for the report.
        latencies: for batches of 1 and the largest.
        against: those of the float32 graph, measured side by side with these.
        metrics: of the module's own validation step, answered by the file.
        verdicts: of the gates that it has been through; after one that failed, a search asks no more.
        comparison: of its answers with those of the module as it was trained, before it was pruned; none where no
            gate has asked for answers.
        left_out: why a search has not put it through all of them, where none has failed.
        recalled: its measurements are those of an earlier search, or its verdicts of another machine.
        against_size: how large the float32 graph is.
    """

    plan: Plan
    trained: Trained
    file: Path
    size: int
    max_batch_size: int
    notes: dict[str, Any] = field(default_factory=dict)
    latencies: list[Latency] = field(default_factory=list)
    against: list[Latency] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    worst: gates.Worst | None = None
    comparison: Comparison | None = None
    left_out: str = ""
    recalled: bool = False
    against_size: int = 0

    @property
    def precision(self) -> str:
        """What it is called."""
        return self.plan.precision

    @property
    def failed(self) -> list[Verdict]:
        """The verdicts that speak against it."""
        return [verdict for verdict in self.verdicts if not verdict.passed]

    @property
    def speedup(self) -> list[float]:
        """How many times as fast as the float32 graph it is, at each batch size."""
        pairs = zip(self.against, self.latencies, strict=True)
        return [slow.median_ms / fast.median_ms for slow, fast in pairs]

    @cached_property
    def runtime(self) -> Runtime:
        """The backend that will serve it; loaded when it is first asked for."""
        return Runtime(self.file.read_bytes(), self.plan.serving(self.max_batch_size), self.plan.backend)

    @cached_property
    def digest(self) -> str:
        """The sha256 of its file."""
        return hashlib.sha256(self.file.read_bytes()).hexdigest()

    def forget(self) -> None:
        """Be as if it had not been measured."""
        self.latencies, self.against, self.metrics, self.verdicts = [], [], {}, []
        self.left_out, self.recalled = "", False

    def rest(self) -> None:
        """Give back the memory of the runtime."""
        if "runtime" in self.__dict__:
            self.runtime.close()
            del self.runtime

    def drop(self, score: float) -> float:
        """Return how much worse its metric is than a score; infinite where it was not measured."""
        found = self.metrics.get(self.trained.metric, math.nan)
        drop = score - found if self.trained.mode == "max" else found - score
        return drop if math.isfinite(drop) else math.inf
