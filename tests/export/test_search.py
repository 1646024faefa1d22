"""The search: it publishes what is best among what keeps the promise, and says why not the others."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_modules import CellTable, Digits, Tiny
from torch._inductor import config

import shipline as sl
from shipline.artifact import Artifact, open_model
from shipline.backends.openvino import OpenVinoBackend
from shipline.commands import main
from shipline.errors import GateError, MissingExtraError
from shipline.export import Source, plan, processor, proof, search, source_of, workbench
from shipline.export.candidate import Candidate
from shipline.export.latency import Latency
from shipline.export.passes.prune_channels import PruneChannels
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.plan import BASELINE, SEARCHED, Plan, searched
from shipline.export.recipe import Recipe
from shipline.export.target import Target
from shipline.export.trained import Trained
from shipline.export.workbench import Workbench
from shipline.train import Run

pytestmark = pytest.mark.usefixtures("quick_search")


@pytest.fixture
def bench(source: Source, looked_at: Trained) -> Iterator[Workbench]:
    """The trained digits, of which nothing is made yet."""
    with Workbench(source, sl.Recipe(precision="auto"), looked_at) as bench:
        yield bench


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[float, float]]:
    """Plan -> its milliseconds at batch 1 and 32; what is not in it takes longer than float32."""
    times: dict[str, tuple[float, float]] = {"float32 on onnxruntime": (1.0, 10.0)}

    def measure(runtimes: dict[str, Any], rows: Any, batch: int) -> dict[str, Latency]:
        at = 0 if batch == 1 else 1
        return {name: taken(batch, times.get(name, (2.0, 20.0))[at]) for name in runtimes}

    monkeypatch.setattr(workbench, "measure", measure)
    return times


def taken(batch: int, median: float) -> Latency:
    return Latency(batch, median, median, median, (median,))


def export(run: Run, to: Path, **settings: Any) -> Artifact:
    return sl.export(run, {"precision": "auto", **settings}, to=str(to))


def candidates(artifact: Artifact) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(artifact.read("report.json"))["candidates"]}


def test_every_precision_is_tried_on_every_backend(
    trained: Run, tmp_path: Path, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: True)
    artifact = export(trained, tmp_path / "m")
    smooth = "smooth, so nothing was published: ValueError: no product with weights takes what a norm gives"
    small = "int4-weights, so nothing was published: ValueError: it has no product with a matrix of weights"
    refused = {
        "int8-smooth on onnxruntime": smooth,
        "int4-weights on onnxruntime": small,
        "int8-smooth on openvino": smooth,
        "int8-smooth-bfloat16 on openvino": smooth,
    }
    said = json.loads(artifact.read("report.json"))["refused"]
    assert said == [f"{way}: The graph cannot be made {why}" for way, why in refused.items()]
    tried = ["float32 on onnxruntime", *(str(each) for each in searched(None) if str(each) not in refused)]
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


def test_a_search_that_would_be_in_vain_does_not_begin(
    trained: Run, trained_cells: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module's metric, and its raw rows, need no candidate to be judged."""
    monkeypatch.setattr(proof, "search", lambda *_: pytest.fail("it has begun"))

    class Others(CellTable):
        def raw_rows(self) -> Any:
            return [{name: value + 1 for name, value in row.items()} for row in list(super().raw_rows())[:3]]

    with pytest.raises(GateError, match=r"Cells failed 1 of 2 gates; nothing .*\n  preprocessing: 0 of 3 raw rows"):
        sl.export(trained_cells, "auto", data=Others(), to=str(tmp_path / "m"))
    worse = dataclasses.replace(source_of(trained.checkpoint, Tiny), recorded={"val_acc": 2.0})
    with pytest.raises(GateError, match=r"Tiny failed 1 of 1 gates; nothing .*\n  rebuilt: val_acc of the rebuilt"):
        sl.export(worse, "auto", data=Digits(), to=str(tmp_path / "m"))


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
    monkeypatch.setattr(Workbench, "_metrics", lambda self, runtime, like: asked.append(runtime) or like.metrics)
    found = search.search(bench, sl.Recipe(precision="auto", backend="onnxruntime"))
    assert len(asked) == 1, "the baseline's alone"
    assert len(found.candidates) > 3


def test_a_way_that_leads_nowhere_is_told(bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> bytes:
        raise GateError("The graph cannot be made int8: no rows.")

    monkeypatch.setattr(StaticInt8, "apply", fails)
    found = search.search(bench, sl.Recipe(precision="auto"))
    assert "int8 on onnxruntime: The graph cannot be made int8: no rows." in found.refused
    assert "int8 on openvino: The graph cannot be made int8: no rows." in found.refused


def test_a_way_that_ends_its_process_is_told_and_costs_no_other(
    bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StaticInt8, "apply", lambda *_: os.abort())
    found = search.search(bench, sl.Recipe(precision="auto"))
    [said] = [line for line in found.refused if line.startswith("int8 on openvino: ")]
    assert "int8 on openvino: Making the graph int8 ended its process by SIGABRT (at test_search.py:" in said
    assert {"float32 on openvino", "int8-weights on onnxruntime"} <= {str(each.plan) for each in found.candidates}


def test_a_pass_is_applied_once_for_all_backends(
    bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To measure scales takes long."""
    apply, applied = StaticInt8.apply, tmp_path / "applied"

    def counted(self: StaticInt8, *given: Any) -> bytes:
        with applied.open("a") as file:  # which outlives the process that it is applied in
            print(self, file=file)
        return apply(self, *given)

    monkeypatch.setattr(StaticInt8, "apply", counted)
    found = search.search(bench, sl.Recipe(precision="auto"))
    assert {"int8 on onnxruntime", "int8 on openvino"} <= {str(each.plan) for each in found.candidates}
    lines = applied.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 4, "int8, int8-portable, int8-tensor, and int8-mixed, which is one, too"


def test_what_is_made_on_the_way_keeps_a_file_of_its_own(bench: Workbench) -> None:
    """The float32 graph, where the int8 one is asked for first."""
    small, plain = bench.make(plan.plan("int8", "onnxruntime")), bench.baseline
    assert small.file != plain.file
    assert (small.size, plain.size) == (small.file.stat().st_size, plain.file.stat().st_size)
    assert small.size < plain.size


@pytest.mark.parametrize("at", [0, 1, 2, 40])
def test_what_cannot_run_real_rows_ends_no_search(
    bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """When it is tried, or only at a row that its gates come to."""
    timed["float32 on openvino"] = (0.5, 5.0)
    run, runs = OpenVinoBackend.run, []

    def broken(self: OpenVinoBackend, inputs: Any) -> Any:
        runs.append(1)
        if len(runs) > at:
            raise OverflowError("'x' holds 4294967296.")
        return run(self, inputs)

    monkeypatch.setattr(OpenVinoBackend, "run", broken)
    found = search.search(bench, sl.Recipe(precision="auto", backend="openvino"))
    assert found.chosen.plan == BASELINE
    left_out = [each.left_out for each in found.candidates if str(each.plan) == "float32 on openvino"]
    assert any("'x' holds 4294967296" in text for text in (*left_out, *found.refused))


def test_a_wrong_baseline_ends_the_search(bench: Workbench, timed: Any) -> None:
    """A graph is no better than the float32 graph that it was made of."""
    trained = dataclasses.replace(bench.trained, metrics={**bench.trained.metrics, "val_acc": 2.0})
    with Workbench(bench._source, sl.Recipe(precision="auto"), trained) as wrong:
        found = search.search(wrong, sl.Recipe(precision="auto"))
    assert found.candidates == [found.chosen] == [wrong.baseline]
    assert [verdict.gate for verdict in found.chosen.failed] == ["metric"]


def made(trained: Trained, name: str, small: float, large: float, size: int, drop: float = 0.0) -> Candidate:
    """A candidate with these milliseconds (the float32 graph has 1 and 10), bytes and loss of accuracy."""
    return Candidate(
        Plan(name, "onnxruntime"), trained, Path(), size, 32, {}, [taken(1, small), taken(32, large)],
        [taken(1, 1.0), taken(32, 10.0)], {"val_acc": 0.9 - drop},
    )  # fmt: skip


@pytest.mark.parametrize(("objective", "best"), [("speed", "b"), ("latency", "a"), ("throughput", "b"), ("size", "c")])
def test_each_objective_has_its_own_best(looked_at: Trained, objective: Any, best: str) -> None:
    tried = [
        made(looked_at, *each)
        for each in (("plain", 1, 10, 100), ("a", 0.4, 9, 100), ("b", 0.5, 5, 90), ("c", 0.9, 9.9, 30))
    ]
    recipe = Recipe(precision="auto", objective=objective)
    assert min(tried, key=lambda each: search.cost(each, recipe)).precision == best


def test_speed_is_compared_as_it_was_measured_side_by_side(looked_at: Trained) -> None:
    """The machine was half as fast while the second was measured."""
    first, second = made(looked_at, "first", 0.5, 5, 90), made(looked_at, "second", 0.9, 9, 90)
    second.against = [taken(1, 2.0), taken(32, 20.0)]
    recipe = Recipe(precision="auto")
    assert min([first, second], key=lambda each: search.cost(each, recipe)) is second


def test_the_front_is_what_nothing_else_beats_in_everything(bench: Workbench) -> None:
    known = dataclasses.replace(bench.trained, metrics={"val_acc": 0.9})
    fast, exact = made(known, "fast", 1, 5, 100, 0.01), made(known, "exact", 2, 10, 100)
    unbeaten = [fast, exact, made(known, "small", 3, 11, 20, 0.02)]
    beaten = [made(known, "slow", 2, 11, 100), made(known, "worse", 1, 5, 100, 0.02)]
    with Workbench(bench._source, bench._recipe, known) as judged:
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


def test_a_search_keeps_no_runtime_and_leaves_no_file(source: Source, looked_at: Trained, timed: Any) -> None:
    """Else it would need the memory of all candidates at once."""
    recipe = sl.Recipe(precision="auto")
    with Workbench(source, recipe, looked_at) as bench:
        found = search.search(bench, recipe)
        assert len(found.candidates) > 5
        assert not any("runtime" in vars(each) for each in found.candidates)
        assert all(each.file.stat().st_size == each.size for each in found.candidates)
    assert not any(each.file.exists() for each in found.candidates)


def test_what_no_compiler_can_make_is_said_and_the_others_go_on(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SEARCHED, "aotinductor", ("float32", "bfloat16"))
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: True)
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        artifact = export(trained, tmp_path / "m", backend="aotinductor")
    assert artifact.manifest.backend == "onnxruntime"
    refused = json.loads(artifact.read("report.json"))["refused"]
    assert [line.partition(":")[0] for line in refused] == ["float32 on aotinductor", "bfloat16 on aotinductor"]
    assert all("needs a compiler of C++, and there is no 'no-such-compiler' here" in line for line in refused)


def test_a_backend_that_is_not_installed_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {each.backend for each in searched(None)} == {"onnxruntime", "openvino"}
    real = plan.load

    def load(kind: str, name: str) -> Any:
        if name == "openvino":
            raise MissingExtraError("not here")
        return real(kind, name)

    monkeypatch.setattr(plan, "load", load)
    assert {each.backend for each in searched(None)} == {"onnxruntime"}


def test_files_that_are_code_are_searched_only_for_those_who_say_so(
    bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server would not load them unless it is told to."""
    timed["float32 on torchscript"] = (0.1, 1.0)
    assert not any(each.backend_class.runs_code for each in searched(None))
    found = search.search(bench, sl.Recipe(precision="auto", compiled=True))
    assert str(found.chosen.plan) == "float32 on torchscript"


@pytest.mark.parametrize("backend", ["openvino", "aotinductor"])
def test_bfloat16_is_searched_only_where_the_processor_has_it(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere OpenVINO computes in float32, whatever it was told."""
    monkeypatch.setitem(SEARCHED, "aotinductor", ("float32", "bfloat16"))
    for has in (True, False):
        monkeypatch.setattr(processor, "computes_bfloat16", lambda has=has: has)
        assert ("bfloat16" in [each.precision for each in searched(backend)]) == has


def test_what_does_not_fit_the_target_is_not_published(trained: Run, tmp_path: Path, timed: Any) -> None:
    """The fastest is too large, so what is small is; what is too large is not even timed."""
    timed["float32 on openvino"] = (0.1, 1.0)
    timed["int8 on openvino"] = (0.5, 5.0)
    artifact = export(trained, tmp_path / "m", target="9kB,0.7ms", max_metric_drop=0.05, tolerance=0.2)
    assert (artifact.manifest.precision, artifact.manifest.backend) == ("int8", "openvino")
    [verdict] = [verdict for verdict in artifact.manifest.verdicts if verdict.gate == "target"]
    assert re.fullmatch(
        r"[\d,]+ bytes and 0.5 ms a row on this machine; 9,000 bytes and 0.7 ms a row is allowed", verdict.message
    )
    refused = json.loads(artifact.read("report.json"))["refused"]
    assert any(re.match(r"float32 on openvino: [\d,]+ bytes; 9,000 bytes", line) for line in refused)


def test_where_nothing_fits_the_nearest_are_told(trained: Run, tmp_path: Path, timed: Any) -> None:
    with pytest.raises(GateError) as refused:
        export(trained, tmp_path / "m", target="100kB,0.5ms", backend="onnxruntime")
    first, target, title, *nearest = str(refused.value).splitlines()
    assert first.startswith("m as float32 on onnxruntime failed 1 of ")
    assert re.match(r"  target: [\d,]+ bytes and 1 ms a row on this machine; 100,000 bytes and 0.5 ms", target)
    assert title == "Nearest, and what each lacks:"
    assert 1 <= len(nearest) <= search.NEAREST
    assert any("int8 on onnxruntime: " in line and "2 ms a row" in line for line in nearest)
    assert not (tmp_path / "m").exists()


def test_the_instructions_of_the_target_choose_what_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEARCHED, "aotinductor", ("float32", "bfloat16"))
    monkeypatch.setattr(processor, "cuts_sums", lambda: False)
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: True)
    here = searched(None, compiled=True)
    assert {"int8-portable", "bfloat16"} <= {each.precision for each in here}
    assert "aotinductor" in {each.backend for each in here}
    old = searched(None, compiled=True, target=Target.parse("avx2"))
    assert not {"int8-portable", "bfloat16"} & {each.precision for each in old}
    assert "aotinductor" not in {each.backend for each in old}
    narrow = [each for plan in old for each in plan.passes if isinstance(each, StaticInt8)]
    assert len(narrow) >= 4
    assert all(each.reduce_range for each in narrow)
    assert "bfloat16" in {each.precision for each in searched(None, target=Target.parse("amx"))}


def test_pruning_is_searched_share_by_share(bench: Workbench, timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has lost too much before it is converted costs no conversion."""
    applied, lost = [], {0.5: 0.0, 0.75: 0.2}

    def prune(self: PruneChannels, module: Any, material: Any) -> Any:
        applied.append(self.ratio)
        return copy.deepcopy(module)

    def again(trained: Trained, module: Any, *_: Any) -> Trained:
        score = trained.metrics["val_acc"] - lost[applied[-1]]
        return dataclasses.replace(trained, module=module, metrics={**trained.metrics, "val_acc": score})

    monkeypatch.setattr(PruneChannels, "apply", prune)
    monkeypatch.setattr(workbench, "look_again", again)
    found = search.search(bench, sl.Recipe(precision="auto", prune="auto", backend="onnxruntime"))
    assert applied == [0.5, 0.75]
    names = [str(each.plan) for each in found.candidates]
    assert {"float32 on onnxruntime", "pruned-50% float32 on onnxruntime", "pruned-50% int8 on onnxruntime"} < {*names}
    assert not any("75%" in name for name in names)
    assert [line for line in found.refused if line.startswith("pruned-75%: val_acc is")]
