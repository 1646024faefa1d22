"""The search: it publishes what is best among what keeps the promise, and says why not the others."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

import shipline as sl
from shipline.artifact import Artifact, open_model
from shipline.commands import main
from shipline.errors import GateError
from shipline.export import Source, candidate, search
from shipline.export.candidate import Candidate, Workbench
from shipline.export.latency import Latency
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.plan import BASELINE, Plan, searched
from shipline.export.recipe import Recipe
from shipline.export.trained import look_at
from shipline.train import Run


@pytest.fixture(scope="module")
def bench(source: Source) -> Workbench:
    """The trained digits."""
    recipe = sl.Recipe(precision="auto")
    return Workbench(source, recipe, look_at(source, recipe))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """Plan -> its milliseconds at batch 1 and 32; what is not in it takes longer than float32."""
    times: dict[str, tuple[float, float]] = {"float32 on onnxruntime": (1.0, 10.0)}

    def measure(runtimes: dict[str, Any], rows: Any, batch: int) -> dict[str, Latency]:
        at = 0 if batch == 1 else 1
        return {name: taken(batch, times.get(name, (2.0, 20.0))[at]) for name in runtimes}

    monkeypatch.setattr(candidate, "measure", measure)
    return times


def taken(batch: int, median: float) -> Latency:
    return Latency(batch, median, median, median, (median,))


def export(run: Run, to: Path, **settings: Any) -> Artifact:
    return sl.export(run, {"precision": "auto", **settings}, to=str(to))


def candidates(artifact: Artifact) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(artifact.read("report.json"))["candidates"]}


def test_every_precision_is_tried_on_every_backend(trained: Run, tmp_path: Path, timed: Any) -> None:
    artifact = export(trained, tmp_path / "m")
    assert json.loads(artifact.read("report.json"))["refused"] == [
        (
            "int4-weights on onnxruntime: The graph cannot be made int4-weights, so nothing was published: "
            "ValueError: it has no product with a matrix of weights"
        )
    ]
    tried = ["float32 on onnxruntime", *map(str, searched(None))]
    tried.remove("int4-weights on onnxruntime")
    assert list(candidates(artifact)) == tried
    assert {"int8 on openvino", "bfloat16 on openvino", "int8-dynamic on onnxruntime"} < set(tried)


def test_the_fastest_that_passes_is_published(trained: Run, tmp_path: Path, timed: Any) -> None:
    """Fastest of all would be dynamic int8, whose answers depend on the company."""
    timed["int8-dynamic on onnxruntime"] = (0.1, 1.0)
    timed["int8 on openvino"] = (0.2, 2.0)
    timed["float32 on openvino"] = (0.9, 9.0)
    artifact = export(trained, tmp_path / "m", max_metric_drop=0.05, tolerance=0.2)
    assert (artifact.manifest.precision, artifact.manifest.backend) == ("int8", "openvino")
    assert all(verdict.passed for verdict in artifact.manifest.verdicts)
    found = candidates(artifact)
    [failed] = [verdict for verdict in found["int8-dynamic on onnxruntime"]["verdicts"] if not verdict["passed"]]
    assert failed["gate"] == "batch_invariance"
    assert [name for name, each in found.items() if each["chosen"]] == ["int8 on openvino"]


def test_an_int8_that_is_slower_is_not_published(trained: Run, tmp_path: Path, timed: Any) -> None:
    artifact = export(trained, tmp_path / "m")
    assert str(BASELINE) == f"{artifact.manifest.precision} on {artifact.manifest.backend}"
    found = candidates(artifact)
    for name in ("int8 on onnxruntime", "int8 on openvino"):
        [verdict] = [verdict for verdict in found[name]["verdicts"] if not verdict["passed"]]
        assert verdict["gate"] == "latency"
        assert "0.50 times as fast as float32" in verdict["message"]


def test_what_is_slower_is_not_asked_for_its_metric(
    bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(Workbench, "_metrics", lambda self, runtime: asked.append(runtime) or self.trained.metrics)
    found = search.search(bench, sl.Recipe(precision="auto", backend="onnxruntime"))
    assert asked == [bench.baseline.runtime]
    assert len(found.candidates) > 3


def test_a_way_that_leads_nowhere_is_told(bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> bytes:
        raise GateError("The graph cannot be made int8: no rows.")

    monkeypatch.setattr(StaticInt8, "apply", fails)
    found = search.search(fresh(bench), sl.Recipe(precision="auto"))
    assert "int8 on onnxruntime: The graph cannot be made int8: no rows." in found.refused
    assert "int8 on openvino: The graph cannot be made int8: no rows." in found.refused


def test_a_pass_is_applied_once_for_all_backends(bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To measure scales takes long."""
    apply, applied = StaticInt8.apply, []

    def counted(self: StaticInt8, *given: Any) -> bytes:
        applied.append(self)
        return apply(self, *given)

    monkeypatch.setattr(StaticInt8, "apply", counted)
    found = search.search(fresh(bench), sl.Recipe(precision="auto"))
    assert {"int8 on onnxruntime", "int8 on openvino"} <= {str(each.plan) for each in found.candidates}
    assert len(applied) == len(set(applied))


class Broken:
    """A runtime that fails at a certain run."""

    def __init__(self, runtime: Any, at: int) -> None:
        self._runtime, self._left = runtime, at

    def run(self, inputs: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise GateError("openvino cannot run the graph on {'x': [1, 64]}: 'x' holds 4294967296.")
        return self._runtime.run(inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


@pytest.mark.parametrize("at", [0, 1, 2, 40])
def test_what_cannot_run_real_rows_ends_no_search(
    bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """When it is tried, or only at a row that its gates come to."""
    timed["float32 on openvino"] = (0.5, 5.0)
    make = Workbench.make

    def broken(self: Workbench, plan: Plan) -> Candidate:
        found = make(self, plan)
        if str(plan) == "float32 on openvino":
            found.runtime = Broken(found.runtime, at)  # type: ignore[assignment]
        return found

    monkeypatch.setattr(Workbench, "make", broken)
    found = search.search(fresh(bench), sl.Recipe(precision="auto", backend="openvino"))
    assert found.chosen.plan == BASELINE
    left_out = [each.left_out for each in found.candidates if str(each.plan) == "float32 on openvino"]
    assert any("'x' holds 4294967296" in text for text in (*left_out, *found.refused))


def test_a_wrong_baseline_ends_the_search(bench: Workbench, timed: Any) -> None:
    """A graph is no better than the float32 graph that it was made of."""
    trained = dataclasses.replace(bench.trained, metrics={**bench.trained.metrics, "val_acc": 2.0})
    wrong = Workbench(bench._source, sl.Recipe(precision="auto"), trained)
    found = search.search(wrong, sl.Recipe(precision="auto"))
    assert found.chosen is wrong.baseline
    assert [verdict.gate for verdict in found.chosen.failed] == ["metric"]
    assert not any(each.verdicts for each in found.candidates[1:])


def fresh(bench: Workbench) -> Workbench:
    return Workbench(bench._source, sl.Recipe(precision="auto"), bench.trained)


def made(name: str, small: float, large: float, size: int, drop: float = 0.0) -> Candidate:
    """A candidate with these latencies, bytes and loss of accuracy."""
    runtime: Any = None
    metrics = {"val_acc": 0.9 - drop}
    return Candidate(Plan(name, "onnxruntime"), bytes(size), runtime, metrics, [taken(1, small), taken(32, large)])


@pytest.mark.parametrize(("objective", "best"), [("speed", "b"), ("latency", "a"), ("throughput", "b"), ("size", "c")])
def test_each_objective_has_its_own_best(objective: Any, best: str) -> None:
    plain = made("plain", 1, 10, 100)
    tried = [plain, made("a", 0.4, 9, 100), made("b", 0.5, 5, 90), made("c", 0.9, 9.9, 30)]
    recipe = Recipe(precision="auto", objective=objective)
    assert min(tried, key=lambda each: search.cost(each, plain, recipe)).precision == best


def test_the_front_is_what_nothing_else_beats_in_everything(bench: Workbench) -> None:
    unbeaten = [made("fast", 1, 5, 100, 0.01), made("exact", 2, 10, 100), made("small", 3, 11, 20, 0.02)]
    beaten = [made("slow", 2, 11, 100), made("worse", 1, 5, 100, 0.02)]
    judged = Workbench(bench._source, bench._recipe, dataclasses.replace(bench.trained, metrics={"val_acc": 0.9}))
    assert search.front([*unbeaten, *beaten], judged) == unbeaten


def test_auto_on_the_command_line(
    trained: Run, tmp_path: Path, timed: Any, capsys: pytest.CaptureFixture[str], command_line: list[str]
) -> None:
    timed["float32 on openvino"] = (0.5, 5.0)
    assert main([command_line[0], "--auto", *command_line[1:], "--budget", "0.5%"]) == 0
    [artifact] = [open_model(command_line[command_line.index("--to") + 1]).stable()]
    assert (artifact.manifest.precision, artifact.manifest.backend) == ("float32", "openvino")
    content = json.loads(artifact.read("report.json"))
    assert content["recipe"]["max_metric_drop"] == "0.5%"
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "(float32 on openvino)" in said
    assert "What was measured" in said
    assert "published" in said
    assert "failed latency:" in said
