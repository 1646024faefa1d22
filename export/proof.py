"""The proof: what is known of the trained module, and what the gates say of what was made of it."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from shipline.artifact import ServingSettings, Verdict
from shipline.export import gates, golden
from shipline.export.candidate import Candidate
from shipline.export.plan import BASELINE
from shipline.export.recipe import Recipe
from shipline.export.search import Found, front, nearest, search
from shipline.export.settings import Point, tune
from shipline.export.source import Source
from shipline.export.trained import Trained, look_at
from shipline.export.workbench import Workbench


@dataclass(frozen=True)
class Proof:
    """What is published, and on what grounds.

    Args:
        trained: what is known of the trained module.
        candidates: what was made of it; the first is the float32 graph on onnxruntime.
        chosen: the one to publish.
        model: its file.
        serving: the settings for servers to start from, and what was measured to find them.
        golden: rows for servers to check themselves with.
        front: those that passed and that no other beats in everything.
        refused: the ways of a search that led nowhere, each with its reason.
        nearest: where nothing may be published, what came nearest and what it lacks.
        raw: number of a row whose answers differ most -> number of the raw row that it was made of, and that raw row;
            where they are known.
    """

    trained: Trained
    candidates: list[Candidate]
    chosen: Candidate
    model: bytes
    serving: ServingSettings
    points: list[Point]
    golden: golden.Golden
    front: list[Candidate] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    nearest: list[str] = field(default_factory=list)
    raw: dict[int, tuple[int, Any]] = field(default_factory=dict)

    @property
    def must_pass(self) -> list[Candidate]:
        """What has to pass: a graph is no better than the float32 graph that it was made of."""
        first = self.candidates[0]
        return [first] if self.chosen is first else [first, self.chosen]


def prove(source: Source, recipe: Recipe, executor: Executor | None = None) -> Proof:
    """Make what the recipe asks for, or search it, with an executor's workers, and put it through every gate."""
    trained = look_at(source, recipe)
    raw = [] if source.processing is None else list(islice(source.raw_rows(), golden.RAW_ROWS))
    if recipe.searches:  # which takes long, and would be in vain
        gates.refuse_failed(type(trained.module).__name__, _of_source(trained, source, recipe, raw))
    with Workbench(source, recipe, trained, executor) as bench:
        found = search(bench, recipe) if recipe.searches else _asked_for(bench, recipe)
        chosen, best = found.chosen, front(found.candidates, bench)
        if chosen is bench.baseline and recipe.machine.limits:
            chosen.verdicts.append(bench.fit(chosen))
        chosen.verdicts += _rebuilt(trained, source, recipe)
        rows = _golden(chosen, source, recipe, raw)
        failed = bench.baseline.failed or chosen.failed  # then nothing is published, and nothing need be measured
        serving, points = (chosen.plan.serving(recipe.max_batch_size), []) if failed else tune(chosen)
        if source.processing is not None:
            serving = serving.model_copy(update={"longest": source.processing.longest})
        model = chosen.file.read_bytes()
        shown = {} if failed else _raw_of_worst(chosen, trained, source, raw)
        return Proof(
            trained, found.candidates, chosen, model, serving, points, rows, best, found.refused,
            nearest(found, recipe) if chosen.failed else [], shown,
        )  # fmt: skip


def _asked_for(bench: Workbench, recipe: Recipe) -> Found:
    plan = recipe.plan()
    candidates = [bench.baseline] if plan == BASELINE else [bench.baseline, bench.make(plan)]
    if plan != BASELINE:
        bench.try_out(candidates[-1])
    for candidate in candidates:
        bench.time(candidate)
        bench.judge(candidate, to_the_end=True)
    return Found(candidates, candidates[-1], [])


def _rebuilt(trained: Trained, source: Source, recipe: Recipe) -> list[Verdict]:
    """Compare the rebuilt module with what the run itself measured, where it did."""
    recorded = source.recorded.get(trained.metric)
    if recorded is None:
        return []
    allowed = recipe.allowed_drop(recorded)
    return [gates.rebuilt(trained.metric, trained.mode, recorded, trained.score, allowed)]


def _of_source(trained: Trained, source: Source, recipe: Recipe, raw: list[Any]) -> list[Verdict]:
    """Say of the module and of its raw rows what needs no candidate."""
    found = _rebuilt(trained, source, recipe)
    if source.processing is None:
        return found
    of_rows = trained.rows, trained.signature, recipe.golden_rows
    return [*found, golden.from_raw(trained.module, source.processing, raw, *of_rows)[1]]


def _golden(chosen: Candidate, source: Source, recipe: Recipe, raw: list[Any]) -> golden.Golden:
    trained = chosen.trained
    if source.processing is None:
        assert chosen.worst is not None
        return golden.from_rows(trained.rows, trained.signature, recipe.golden_rows, chosen.worst.row)
    rows, verdict = golden.from_raw(
        trained.module, source.processing, raw, trained.rows, trained.signature, recipe.golden_rows
    )
    chosen.verdicts.append(verdict)
    return rows


def _raw_of_worst(chosen: Candidate, trained: Trained, source: Source, raw: list[Any]) -> dict[int, tuple[int, Any]]:
    if source.processing is None or chosen.comparison is None:
        return {}
    worst = [each.row for each in chosen.comparison.worst]
    return golden.raw_of(worst, raw, source.processing, trained.rows, trained.signature)
