"""A candidate: a graph that was made one way, and what the gates say of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from shipline.artifact import Verdict
from shipline.backends.base import Arrays
from shipline.errors import GateError
from shipline.export import gates
from shipline.export.convert import to_onnx
from shipline.export.latency import Latency, batch_of, measure
from shipline.export.passes.base import Material, Pass
from shipline.export.plan import BASELINE, Plan
from shipline.export.recipe import Recipe
from shipline.export.rows import replaced_forward
from shipline.export.runtime import Runtime
from shipline.export.trained import Source, Trained, calibration_rows


@dataclass
class Candidate:
    """A graph on its way through the gates.

    Args:
        plan: how it was made.
        model: the graph.
        runtime: the backend that will serve it.
        metrics: of the module's own validation step, answered by the graph.
        verdicts: of the gates that it has been through; after one that failed, a search asks no more.
        left_out: why a search has not put it through all of them, where none has failed.
    """

    plan: Plan
    model: bytes
    runtime: Runtime
    metrics: dict[str, float] = field(default_factory=dict)
    latencies: list[Latency] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    worst: gates.Worst | None = None
    left_out: str = ""

    @property
    def precision(self) -> str:
        """What it is called."""
        return self.plan.precision

    @property
    def failed(self) -> list[Verdict]:
        """The verdicts that speak against it."""
        return [verdict for verdict in self.verdicts if not verdict.passed]

    def speedup(self, baseline: Candidate) -> list[float]:
        """Return how many times as fast as the baseline it is, at each batch size."""
        pairs = zip(baseline.latencies, self.latencies, strict=True)
        return [slow.median_ms / fast.median_ms for slow, fast in pairs]


class Workbench:
    """Makes candidates of a trained module, and judges them."""

    def __init__(self, source: Source, recipe: Recipe, trained: Trained) -> None:
        self._source, self._recipe, self.trained = source, recipe, trained
        self._drop = recipe.allowed_drop(trained.score)
        self._graphs: list[tuple[tuple[Pass, ...], bytes]] = []

    @cached_property
    def baseline(self) -> Candidate:
        """The float32 graph on onnxruntime, which all others are compared with and made of."""
        plain = to_onnx(self.trained.module, self.trained.rows, self.trained.signature)
        return Candidate(BASELINE, plain, self._runtime(plain, BASELINE))

    def make(self, plan: Plan) -> Candidate:
        """Return the candidate of a plan; GateError where the graph cannot go that way."""
        if plan == BASELINE:
            return self.baseline
        model = self._graph(plan)
        return Candidate(plan, model, self._runtime(model, plan))

    def try_out(self, candidate: Candidate) -> None:
        """Run it once on real rows; GateError where it cannot."""
        for batch in (1, self._recipe.max_batch_size):
            candidate.runtime.run(batch_of(self.trained.rows.inputs, batch))

    def time(self, candidates: list[Candidate]) -> None:
        """Measure their latencies, side by side, for batches of 1 and the largest."""
        by_name = {str(candidate.plan): candidate for candidate in candidates}
        runtimes = {name: candidate.runtime for name, candidate in by_name.items()}
        for batch in sorted({1, self._recipe.max_batch_size}):
            for name, taken in measure(runtimes, self.trained.rows.inputs, batch).items():
                by_name[name].latencies.append(taken)

    def verdicts(self, candidate: Candidate) -> Iterator[Verdict]:
        """Put a candidate through the gates, those that cost least first; each verdict as it falls."""
        recipe, trained, runtime, plan = self._recipe, self.trained, candidate.runtime, candidate.plan
        rows, signature, largest = trained.rows, trained.signature, recipe.max_batch_size
        if plan != BASELINE and not (recipe.searches and recipe.objective == "size"):
            yield gates.latency(candidate.latencies, self.baseline.latencies, recipe)
        if plan.passes:
            yield gates.size(len(candidate.model), len(self.baseline.model))
        limit = recipe.allowed_difference(plan)
        same, candidate.worst = gates.parity(runtime, rows, signature, largest, limit)
        yield same
        yield gates.batch_invariance(runtime, rows, signature, largest, plan.invariance)
        candidate.metrics = self._metrics(runtime)
        found = candidate.metrics[trained.metric]
        yield gates.metric(trained.metric, trained.mode, trained.score, found, self._drop)

    def judge(self, candidate: Candidate, *, to_the_end: bool) -> None:
        """Gather the verdicts: all of them, or those up to the first that fails."""
        for verdict in self.verdicts(candidate):
            candidate.verdicts.append(verdict)
            if not verdict.passed and not to_the_end:
                break
        candidate.verdicts.sort(key=lambda verdict: gates.ORDER.index(verdict.gate))

    def drop(self, candidate: Candidate) -> float:
        """Return how much worse its metric is than the trained module's; infinite where it was not measured."""
        found = candidate.metrics.get(self.trained.metric, math.nan)
        drop = self.trained.score - found if self.trained.mode == "max" else found - self.trained.score
        return drop if math.isfinite(drop) else math.inf

    def _graph(self, plan: Plan) -> bytes:
        """The graph of a plan: made once, though several backends run it."""
        for passes, model in self._graphs:
            if passes == plan.passes:
                return model
        model, material = self.baseline.model, Material(self.trained.signature, lambda: self._calibration)
        for each in plan.passes:
            model = each.apply(model, material)
        self._graphs.append((plan.passes, model))
        return model

    def _runtime(self, model: bytes, plan: Plan) -> Runtime:
        return Runtime(model, plan.serving(self._recipe.max_batch_size), plan.backend)

    def _metrics(self, runtime: Runtime) -> dict[str, float]:
        trained = self.trained
        assert trained.rows.structure is not None  # signature_of refuses rows that were never recorded
        forward = runtime.forward_for(trained.module, trained.signature, trained.rows.structure)
        with replaced_forward(trained.module, forward):
            return self._source.evaluate(trained.module)

    @cached_property
    def _calibration(self) -> Arrays:
        return calibration_rows(self.trained, self._source, self._recipe).inputs


def refusal(plan: Plan, error: GateError) -> str:
    """Return why a plan made no candidate, in one line."""
    return f"{plan}: {str(error).splitlines()[0]}"
