"""The workbench: makes candidates of a trained module, and puts them through the gates."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from torch import nn

from shipline.artifact import Verdict
from shipline.backends.base import Arrays
from shipline.backends.cores import cores
from shipline.backends.trial import survive
from shipline.errors import ConfigError, GateError
from shipline.export import gates
from shipline.export.apart import apart
from shipline.export.candidate import Candidate
from shipline.export.comparison import Comparison, compare
from shipline.export.latency import batch_of, measure
from shipline.export.making import Made, convert, go_through
from shipline.export.passes.base import Material, ModulePass, Pass
from shipline.export.plan import BASELINE, Plan
from shipline.export.recipe import Recipe
from shipline.export.rows import replaced
from shipline.export.runtime import Once, Runtime
from shipline.export.source import Source
from shipline.export.trained import Trained, calibration_rows, look_again
from shipline.export.workers import Content, Workers, made_elsewhere

Known = TypeVar("Known")
Key = tuple[Any, ...]


class Workbench:
    """Makes candidates, and judges them; a context manager, after which their files and runtimes are gone.

    What is made lies on the disk, and a runtime is in memory for as long as it is measured: a search needs no more
    memory than one candidate beside the float32 graph.
    """

    def __init__(self, source: Source, recipe: Recipe, trained: Trained, executor: Executor | None = None) -> None:
        self._workers = Workers(executor)
        self._source, self._recipe, self.trained = source, recipe, trained
        self._drop = recipe.allowed_drop(trained.score)
        self._modules: list[tuple[tuple[Any, ...], Trained | GateError]] = [((), trained)]
        self._files: list[tuple[tuple[Any, ...], Made | GateError]] = []
        self._candidates: list[Candidate] = []
        self._numbers = itertools.count()
        self._scratch = tempfile.TemporaryDirectory(prefix="shipline-export-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.give_up()
        for candidate in self._candidates:
            candidate.rest()
        self._scratch.cleanup()

    @cached_property
    def baseline(self) -> Candidate:
        """The float32 graph on onnxruntime, which all others are compared with."""
        return self._candidate(BASELINE)

    def make(self, plan: Plan) -> Candidate:
        """Return the candidate of a plan; GateError where it cannot go that way."""
        return self.baseline if plan == BASELINE else self._candidate(plan)

    def foresee(self, plans: Sequence[Plan]) -> None:
        """Let workers, where there are any, make the files of these plans, which will be asked for."""
        starts: dict[Path, bytes] = {}
        for plan in plans if self._workers.there else ():
            with contextlib.suppress(GateError):  # which is raised again when the plan is asked for
                make, (start, *others) = self._making(plan)
                if isinstance(start, Path):  # on this machine; its content travels, once for all
                    start = starts[start] = starts.get(start) or start.read_bytes()
                if all(known != _key(plan) for known, _ in self._files):
                    self._workers.ask(_key(plan), made_elsewhere, make, start, *others)

    def judge_ahead(self, candidates: Sequence[Candidate]) -> None:
        """Let workers, where there are any, put these through the gates."""
        for each in candidates if self._workers.there else ():
            if not each.verdicts and not each.left_out:
                of_all = self._source, self._recipe, self.trained  # which travel once
                measured = each.size, each.max_batch_size, each.latencies, each.against, each.against_size
                content = each.file.read_bytes()
                self._workers.ask(each.plan, judged_elsewhere, *of_all, each.trained, each.plan, content, measured)

    def try_out(self, candidate: Candidate) -> None:
        """Run it on real rows, first where it can crash nobody else; GateError where it cannot."""
        largest, plan, like = self._recipe.max_batch_size, candidate.plan, candidate.trained
        survive(candidate.file, plan.backend, plan.serving(largest), batch_of(like.rows.inputs, largest))
        for batch in (1, largest):
            candidate.runtime.run(batch_of(like.usual, batch))

    def time(self, candidate: Candidate) -> None:
        """Measure its latency for batches of 1 and the largest, side by side with the float32 graph's."""
        pair = {str(each.plan): each.runtime for each in (self.baseline, candidate)}  # one, for the baseline itself
        for batch in sorted({1, self._recipe.max_batch_size}):
            taken = measure(pair, self.trained.usual, batch)
            candidate.latencies.append(taken[str(candidate.plan)])
            candidate.against.append(taken[str(BASELINE)])

    def begin(self, passes: tuple[ModulePass, ...]) -> None:
        """Make the module that plans begin with: once, however many they are.

        Raises:
            GateError: it cannot be made, or has itself lost more of the metric than is allowed.
        """
        found = self._trained(passes).score
        lost = gates.metric(self.trained.metric, self.trained.mode, self.trained.score, found, self._drop)
        if not lost.passed:
            raise GateError(lost.message)

    def fit(self, candidate: Candidate) -> Verdict:
        """Say whether a candidate, once it is timed, fits the machine that will serve."""
        return gates.target(candidate.size, candidate.latencies, self._recipe.machine)

    def judge(self, candidate: Candidate, *, to_the_end: bool) -> None:
        """Gather the verdicts: all of them, or those up to the first that fails, from a worker where one was asked."""
        if not to_the_end and not candidate.recalled and (brought := self._workers.bring(candidate.plan)):
            candidate.verdicts, candidate.metrics, candidate.worst, candidate.comparison = brought
            candidate.recalled = True
            return
        for verdict in self.verdicts(candidate):
            candidate.verdicts.append(verdict)
            if not verdict.passed and not to_the_end:
                break
        candidate.verdicts.sort(key=lambda verdict: gates.ORDER.index(verdict.gate))

    def verdicts(self, candidate: Candidate) -> Iterator[Verdict]:
        """Put a candidate through the gates, those that cost least first; each verdict as it falls."""
        recipe, runtime, plan, like = self._recipe, candidate.runtime, candidate.plan, candidate.trained
        largest = recipe.max_batch_size
        if recipe.machine.limits and plan != BASELINE:  # which others start from; it need not fit
            yield self.fit(candidate)
        if plan != BASELINE and not (recipe.searches and recipe.objective == "size"):
            yield gates.latency(candidate.latencies, candidate.against, recipe)
        if any(each.shrinks for each in (*plan.module_passes, *plan.passes)):
            yield gates.size(candidate.size, candidate.against_size)
        limit = recipe.allowed_difference(plan)
        same, comparison = self._compared(candidate, limit)
        yield same
        if recipe.max_class_drop is not None:
            yield gates.classes(comparison.worst_class, recipe.max_class_drop)
        yield gates.batch_invariance(runtime, like.rows, like.signature, largest, plan.invariance, like.shorter)
        if like.shorter:
            yield gates.padding(runtime, like.shorter, like.rows, like.signature, largest, limit)
        if verdict := gates.not_finite(runtime, like.rows, like.signature, largest, plan.invariance):
            yield verdict
        yield self._determinism(candidate)
        candidate.metrics = self._metrics(runtime, like)
        trained = self.trained
        found = candidate.metrics[trained.metric]
        yield gates.metric(trained.metric, trained.mode, trained.score, found, self._drop)

    def _compared(self, candidate: Candidate, limit: float) -> tuple[Verdict, Comparison]:
        """Compare its answers with those of its module, and of the module as it was trained: mostly the same one."""
        asked, like, trained = Once(candidate.runtime), candidate.trained, self.trained
        largest = self._recipe.max_batch_size
        verdict, candidate.worst = gates.parity(asked, like.rows, like.signature, largest, limit, like.shorter)
        found = compare(asked, trained.rows, trained.signature, largest, self._source.processing)
        candidate.comparison = found
        return verdict, found

    def _candidate(self, plan: Plan) -> Candidate:
        made = self._made(plan)
        size, largest = made.file.stat().st_size, self._recipe.max_batch_size
        candidate = Candidate(plan, self._trained(plan.module_passes), made.file, size, largest, made.notes)
        candidate.against_size = size if plan == BASELINE else self.baseline.size
        self._candidates.append(candidate)
        return candidate

    def _made(self, plan: Plan) -> Made:
        """The file of a plan: made once, even if in vain, though several backends run it."""
        key = _key(plan)
        for known, made in self._files:
            if known == key:
                return _known(made)
        try:
            found = self._brought(plan) or self._made_here(plan)
        except GateError as error:
            self._files.append((key, error))
            raise
        self._files.append((key, found))
        return found

    def _brought(self, plan: Plan) -> Made | None:
        """What a worker has made of it."""
        brought: Content | None = self._workers.bring(_key(plan))
        if brought is None:
            return None
        (file := self._new_file()).write_bytes(brought.data)
        return Made(file, brought.notes)

    def _made_here(self, plan: Plan) -> Made:
        make, arguments = self._making(plan)
        file = self._new_file()  # after those that it is made from
        return Made(file, make(file, *arguments))

    def _making(self, plan: Plan) -> tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]:
        """What makes the file of a plan, and of what."""
        timeout, form = self._recipe.timeout, plan.backend_class.format
        if not plan.passes:
            return convert, (self._trained(plan.module_passes), form, plan.compute, timeout)
        if form != "onnx":
            raise ConfigError(
                f"{plan.passes[0]} changes an ONNX graph, and {plan.backend} takes {form}. Set backend='onnxruntime', "
                "or 'openvino'."
            )
        start = self._made(plan.without_passes()).file
        return go_through, (start, plan.passes, self._material(plan.passes), timeout)

    def _new_file(self) -> Path:
        return Path(self._scratch.name) / str(next(self._numbers))

    def _trained(self, passes: tuple[Any, ...]) -> Trained:
        """What is known of the module once it went through these passes: each is applied once, even if in vain."""
        for known, found in self._modules:
            if known == passes:
                return _known(found)
        before = self._trained(passes[:-1]).module
        try:
            module = self._changed(passes[-1], before)
            made = look_again(self.trained, module.eval(), self._source, self._recipe)
        except GateError as error:
            self._modules.append((passes, error))
            raise
        self._modules.append((passes, made))
        return made

    def _changed(self, each: ModulePass, before: nn.Module) -> nn.Module:
        """Let a module go through a pass: first, without training it, where it can harm nobody else."""
        material = self._material((each,))
        trial = material if material.finetune is None else dataclasses.replace(material, finetune=_not_at_all)

        def try_it() -> None:
            each.apply(before, trial)

        apart(try_it, f"Making {type(before).__name__} {each.label}", self._recipe.timeout)
        return each.apply(before, material)

    def _determinism(self, candidate: Candidate) -> Verdict:
        """Load it a second time, with all cores, and compare."""
        like, largest = candidate.trained, self._recipe.max_batch_size
        served = candidate.plan.serving(largest)
        others = {}
        if cores() > served.threads:
            settings = served.model_copy(update={"threads": cores()})
            others[cores()] = Runtime(candidate.file.read_bytes(), settings, candidate.plan.backend)
        try:
            limit, runtime = candidate.plan.invariance, candidate.runtime
            return gates.determinism(runtime, others, like.rows, like.signature, largest, limit, like.shorter)
        finally:
            for other in others.values():
                other.close()

    def _metrics(self, runtime: Runtime, like: Trained) -> dict[str, float]:
        assert like.rows.structure is not None  # signature_of refuses rows that were never recorded
        forward = runtime.forward_for(like.module, like.signature, like.rows.structure, self._source.trim)
        with replaced(like.module, "forward", forward):
            return self._source.evaluate(like.module)

    def _material(self, passes: Sequence[Pass]) -> Material:
        """What passes may look at. Rows that they measure are taken here, once, and not in each fork or worker."""
        if self._workers.there or any(each.measures for each in passes):
            rows = self._calibration
            calibration: Callable[[], Arrays] = lambda: rows  # noqa: E731 -- which can travel, and this object cannot
        else:
            calibration = lambda: self._calibration  # noqa: E731
        trains = any(isinstance(each, ModulePass) for each in passes)
        return Material(self.trained.signature, calibration, self._source.finetune if trains else None)

    @cached_property
    def _calibration(self) -> Arrays:
        return self._source.trim(calibration_rows(self.trained, self._source, self._recipe).inputs)


def _known(found: Known | GateError) -> Known:
    """What was made earlier; GateError where that was in vain."""
    if isinstance(found, GateError):
        raise found
    return found


def _not_at_all(module: nn.Module, *, epochs: int) -> None:
    """Train no module."""


def _key(plan: Plan) -> Key:
    """What the file of a plan depends on."""
    form = plan.backend_class.format
    return plan.module_passes, plan.passes, form, None if form == "onnx" else plan.compute


def judged_elsewhere(
    source: Source,
    recipe: Recipe,
    trained: Trained,
    like: Trained,
    plan: Plan,
    content: bytes,
    measured: tuple[Any, ...],
) -> tuple[list[Verdict], dict[str, float], gates.Worst | None, Comparison | None]:
    """Put a candidate through the gates in a worker."""
    size, largest, latencies, against, against_size = measured
    with Workbench(source, recipe, trained) as bench, tempfile.TemporaryDirectory(prefix="shipline-export-") as scratch:
        (file := Path(scratch) / "made").write_bytes(content)
        candidate = Candidate(
            plan, like, file, size, largest, latencies=latencies, against=against, against_size=against_size
        )
        try:
            bench.judge(candidate, to_the_end=False)
        finally:
            candidate.rest()
    return candidate.verdicts, candidate.metrics, candidate.worst, candidate.comparison
