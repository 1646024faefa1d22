"""The search: which of many ways is best and keeps the promise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shipline.errors import GateError
from shipline.export.candidate import Candidate, Workbench, refusal
from shipline.export.plan import searched
from shipline.export.recipe import Recipe


@dataclass(frozen=True)
class Found:
    """What a search has seen.

    Args:
        candidates: the baseline first, then what else could be made.
        chosen: the one of them to publish.
        refused: the ways that led nowhere, each with its reason.
    """

    candidates: list[Candidate]
    chosen: Candidate
    refused: list[str]


def search(bench: Workbench, recipe: Recipe) -> Found:
    """Try every way that is known here, and choose the best that passes the gates.

    What costs least is asked first: all are timed side by side; then, the best first, each goes through its gates until
    one fails, the metric over all validation rows last. One that is no better in anything than another that has passed
    and loses nothing is not judged at all.
    """
    made, refused = [bench.baseline], []
    for plan in searched(recipe.backend):
        try:
            candidate = bench.make(plan)
            bench.try_out(candidate)
        except GateError as error:
            refused.append(refusal(plan, error))
        else:
            made.append(candidate)
    bench.time(made)
    bench.judge(bench.baseline, to_the_end=True)
    passed = [] if bench.baseline.failed else [bench.baseline]
    for candidate in sorted(made[1:], key=lambda each: cost(each, bench.baseline, recipe)) if passed else ():
        better = next((other for other in passed if _leaves_nothing(other, candidate, bench)), None)
        if better is not None:
            candidate.left_out = f"{better.plan} is as fast and as small, and loses nothing"
            continue
        try:
            bench.judge(candidate, to_the_end=False)
        except GateError as error:  # a row that it cannot take
            candidate.left_out = str(error).splitlines()[0]
            continue
        if not candidate.failed:
            passed.append(candidate)
    chosen = min(passed, key=lambda each: cost(each, bench.baseline, recipe), default=bench.baseline)
    return Found(made, chosen, refused)


def cost(candidate: Candidate, baseline: Candidate, recipe: Recipe) -> float:
    """Return what the recipe's objective says of a candidate; lower is better."""
    if recipe.objective == "size":
        return len(candidate.model)
    if recipe.objective == "speed":
        return -math.prod(candidate.speedup(baseline))
    at = 0 if recipe.objective == "latency" else -1
    return candidate.latencies[at].median_ms


def front(candidates: list[Candidate], bench: Workbench) -> list[Candidate]:
    """Return those that passed and that no other beats in everything: metric, latency, throughput and size."""
    passed = [each for each in candidates if not each.failed and not each.left_out]
    return [each for each in passed if not any(_beats(other, each, bench) for other in passed)]


def _leaves_nothing(other: Candidate, candidate: Candidate, bench: Workbench) -> bool:
    """Whether `candidate`, whose metric nobody has measured, cannot be better than `other` in anything."""
    return bench.drop(other) <= 0 and all(a <= b for a, b in zip(_costs(other), _costs(candidate), strict=True))


def _beats(other: Candidate, candidate: Candidate, bench: Workbench) -> bool:
    mine, theirs = (bench.drop(candidate), *_costs(candidate)), (bench.drop(other), *_costs(other))
    return theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))


def _costs(candidate: Candidate) -> tuple[float, ...]:
    return (*(taken.median_ms for taken in candidate.latencies), len(candidate.model))
