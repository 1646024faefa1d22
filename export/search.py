"""The search: which of many ways is best and keeps the promise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shipline.errors import GateError
from shipline.export.candidate import Candidate
from shipline.export.plan import Plan, searched
from shipline.export.recipe import Recipe
from shipline.export.remembered import Remembered
from shipline.export.target import Target
from shipline.export.workbench import Workbench

NEAREST = 5


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

    What costs least is asked first: each is timed beside the float32 graph; then, the best first, each goes through its
    gates until one fails, the metric over all validation rows last. One that is no better in anything than another that
    has passed and loses nothing is not judged at all. What an earlier search has measured is taken from there, and what
    workers say of a candidate from them, but for what is published: that is timed and judged here.
    """
    bench.time(bench.baseline)
    bench.judge(bench.baseline, to_the_end=True)
    bench.baseline.rest()
    if bench.baseline.failed:
        return Found([bench.baseline], bench.baseline, [])
    memory = Remembered(recipe, bench.trained)
    made, refused = _made(bench, recipe, memory)
    bench.judge_ahead(sorted(made, key=lambda each: cost(each, recipe)))
    while True:
        chosen = _chosen(bench, recipe, made, memory)
        if not chosen.recalled:
            return Found([bench.baseline, *made], chosen, refused)
        for each in made:
            if not each.verdicts:  # it may have been left out for what was recalled
                each.left_out = ""
        chosen.forget()
        try:
            _measure(bench, chosen)
        except GateError as error:
            made = [each for each in made if each is not chosen]
            refused.append(refusal(chosen.plan, error))


def _chosen(bench: Workbench, recipe: Recipe, made: list[Candidate], memory: Remembered) -> Candidate:
    """Judge what has not been, the best first; return the best that passes."""
    passed = [bench.baseline]
    for candidate in sorted(made, key=lambda each: cost(each, recipe)):
        better = next((other for other in passed if _leaves_nothing(other, candidate, bench)), None)
        if better is not None and not candidate.verdicts:
            candidate.left_out = f"{better.plan} is as fast and as small, and loses nothing"
        elif _judged(bench, candidate, memory):
            passed.append(candidate)
    fit = [each for each in passed if recipe.machine.over(each.size, each.latencies[0].median_ms) <= 1]
    return min(fit or passed[:1], key=lambda each: cost(each, recipe))


def _made(bench: Workbench, recipe: Recipe, memory: Remembered) -> tuple[list[Candidate], list[str]]:
    """Make and time what there is to try; return that, and why the rest is not among it."""
    made, refused = list[Candidate](), list[str]()
    for start in recipe.starts:
        try:
            bench.begin(start)
        except GateError as error:
            refused.append(f"{' '.join(each.label for each in start)}: {str(error).splitlines()[0]}")
            continue
        plans = searched(recipe.backend, start, compiled=recipe.compiled, target=recipe.machine)
        bench.foresee(plans)
        for plan in plans:
            try:
                made.append(_timed(bench, plan, recipe.machine, memory))
            except GateError as error:
                refused.append(refusal(plan, error))
    return made, refused


def _timed(bench: Workbench, plan: Plan, machine: Target, memory: Remembered) -> Candidate:
    candidate = bench.make(plan)
    if machine.over(candidate.size) > 1:
        raise GateError(f"{candidate.size:,} bytes; {machine} is allowed")
    if not memory.recall(candidate):
        _measure(bench, candidate)
        memory.keep(candidate)
    return candidate


def _measure(bench: Workbench, candidate: Candidate) -> None:
    try:
        bench.try_out(candidate)
        bench.time(candidate)
    finally:
        candidate.rest()
        bench.baseline.rest()  # for as long as the next is made


def _judged(bench: Workbench, candidate: Candidate, memory: Remembered) -> bool:
    """Whether it passes its gates; the first that fails ends it, and so does a row that it cannot take."""
    if not candidate.verdicts and not candidate.left_out:
        try:
            bench.judge(candidate, to_the_end=False)
        except GateError as error:
            candidate.left_out = str(error).splitlines()[0]
        finally:
            candidate.rest()
        memory.keep(candidate)
    return not candidate.failed and not candidate.left_out


def nearest(found: Found, recipe: Recipe) -> list[str]:
    """Return what came nearest, where nothing could be published: the best first, each with what it lacks."""
    others = [each for each in found.candidates if each is not found.chosen]
    lacking = [(each, each.left_out or each.failed[0].message) for each in others if each.left_out or each.failed]
    told = [f"{each.plan}: {why}" for each, why in sorted(lacking, key=lambda pair: cost(pair[0], recipe))]
    return [*told, *found.refused][:NEAREST]


def refusal(plan: Plan, error: GateError) -> str:
    """Return why a plan made no candidate, in one line."""
    return f"{plan}: {str(error).splitlines()[0]}"


def cost(candidate: Candidate, recipe: Recipe) -> float:
    """Return what the recipe's objective says of a candidate; lower is better."""
    if recipe.objective == "size":
        return candidate.size
    if recipe.objective == "speed":
        return -math.prod(candidate.speedup)
    return -candidate.speedup[0 if recipe.objective == "latency" else -1]


def front(candidates: list[Candidate], bench: Workbench) -> list[Candidate]:
    """Return those that passed and that no other beats in everything: metric, latency, throughput and size."""
    passed = [each for each in candidates if not each.failed and not each.left_out]
    return [each for each in passed if not any(_beats(other, each, bench) for other in passed)]


def _leaves_nothing(other: Candidate, candidate: Candidate, bench: Workbench) -> bool:
    """Whether `candidate`, whose metric nobody has measured, cannot be better than `other` in anything."""
    score = bench.trained.score
    return other.drop(score) <= 0 and all(a <= b for a, b in zip(_costs(other), _costs(candidate), strict=True))


def _beats(other: Candidate, candidate: Candidate, bench: Workbench) -> bool:
    score = bench.trained.score
    mine, theirs = (candidate.drop(score), *_costs(candidate)), (other.drop(score), *_costs(other))
    return theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True))


def _costs(candidate: Candidate) -> tuple[float, ...]:
    """What its latency is, in parts of the float32 graph's measured beside it, and its size."""
    return (*(1 / speedup for speedup in candidate.speedup), candidate.size)
