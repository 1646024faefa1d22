"""Exports without the channels that are taken out: what is published, what the report says, and what a search tries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_modules import Cells, Tiny
from torch import nn

import shipline as sl
from shipline.artifact import Artifact, open_model
from shipline.commands import main
from shipline.errors import ConfigError, GateError
from shipline.export import Source, workbench
from shipline.export.latency import Latency
from shipline.export.passes.prune_channels import PruneChannels
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.plan import searched
from shipline.export.proof import prove
from shipline.train import Run

LAX: dict[str, Any] = {"min_speedup": 0.0, "max_metric_drop": 0.05, "tolerance": 0.2}


@pytest.fixture(scope="module")
def artifact(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The trained digits, pruned and in 8 bits."""
    recipe = {"precision": "int8", "prune": 0.5, "finetune_epochs": 2, **LAX}
    return sl.export(trained, recipe, to=str(tmp_path_factory.mktemp("models") / "m"))


def test_what_is_pruned_and_in_8_bits_is_published(artifact: Artifact) -> None:
    assert artifact.manifest.precision == "int8"
    assert all(verdict.passed for verdict in artifact.manifest.verdicts)
    assert artifact.manifest.metrics["val_acc"] > 0.85


def test_the_report_says_what_is_left(artifact: Artifact) -> None:
    content = json.loads(artifact.read("report.json"))
    plain, chosen = content["candidates"]
    assert (plain["name"], chosen["name"]) == ("float32 on onnxruntime", "pruned-50% int8 on onnxruntime")
    for wide in (content["trained"], plain):
        assert (wide["parameters"], wide["flops"]) == (64 * 64 + 64 + 64 * 10 + 10, 2 * (64 * 64 + 64 * 10))
    assert (chosen["parameters"], chosen["flops"]) == (64 * 32 + 32 + 32 * 10 + 10, 2 * (64 * 32 + 32 * 10))
    assert chosen["passes"][0].startswith("PruneChannels(ratio=0.5, finetune_epochs=2,")
    page = artifact.read("report.html").decode()
    assert f"{chosen['parameters']:,}" in page
    assert f"{chosen['flops'] / 1e6:,.3f}" in page


def test_the_same_export_gives_the_same_file(trained: Run, artifact: Artifact, tmp_path: Path) -> None:
    passes = (PruneChannels(finetune_epochs=2), StaticInt8())
    again = sl.export(trained, sl.Recipe(passes=passes, **LAX), to=str(tmp_path / "m"))
    assert again.manifest.files["model.onnx"].sha256 == artifact.manifest.files["model.onnx"].sha256


def test_an_extreme_share_that_nobody_trains_after_publishes_nothing(trained: Run, tmp_path: Path) -> None:
    with pytest.raises(
        GateError, match=r"as pruned-90% float32 on onnxruntime failed .*\n(.*\n)*  metric: val_acc is 0\."
    ):
        sl.export(trained, {"prune": 0.9, "finetune_epochs": 0, "min_speedup": 0}, to=str(tmp_path / "m"))
    assert open_model(str(tmp_path / "m")).versions() == []


def test_fine_tuning_may_be_the_users(trained: Run, tmp_path: Path) -> None:
    asked = []

    def finetune(module: nn.Module, *, epochs: int) -> None:
        asked.append((type(module), epochs))

    recipe = {"prune": 0.5, "finetune_epochs": 3, "min_speedup": 0, "max_metric_drop": 1.0}
    sl.export(trained, recipe, to=str(tmp_path / "m"), finetune=finetune)
    assert asked == [(Tiny, 3)]


def test_a_source_without_fine_tuning_says_so(source: Source) -> None:
    with pytest.raises(ConfigError, match=r"PruneChannels has finetune_epochs=10, and nobody said how to train"):
        prove(source, sl.Recipe(prune=0.5))


def test_a_module_with_batch_norm_and_processing(trained_cells: Run, tmp_path: Path) -> None:
    """Its golden rows come from the raw ones, and from the pruned module."""
    recipe = {"passes": (PruneChannels(round_to=1, finetune_epochs=2),), **LAX}
    artifact = sl.export(trained_cells, recipe, to=str(tmp_path / "m"))
    assert type(trained_cells.module) is Cells
    assert {verdict.gate for verdict in artifact.manifest.verdicts} >= {"preprocessing", "metric", "size"}


def test_a_search_measures_what_is_pruned_and_what_is_not() -> None:
    made = PruneChannels()
    assert sl.Recipe(precision="auto", passes=(made,)).starts == [(), (made,)]
    assert sl.Recipe(precision="auto", prune=0.25).starts == [(), (PruneChannels(ratio=0.25),)]
    names = {str(plan) for plan in searched("onnxruntime", (made,))}
    assert names == {"pruned-50% float32 on onnxruntime"} | {f"pruned-50% {plan}" for plan in searched("onnxruntime")}


@pytest.fixture
def fast_when_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine is busy with."""

    def measure(runtimes: dict[str, Any], rows: Any, batch: int) -> dict[str, Latency]:
        times = {name: 0.2 if name.startswith("pruned-50% int8 ") else 1.0 for name in runtimes}
        return {name: Latency(batch, time, time, time, (time,)) for name, time in times.items()}

    monkeypatch.setattr(workbench, "measure", measure)


def test_auto_with_prune_on_the_command_line(
    command_line: list[str], fast_when_pruned: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    apply, applied = PruneChannels.apply, []

    def counted(self: PruneChannels, *given: Any) -> nn.Module:
        applied.append(self)
        return apply(self, *given)

    monkeypatch.setattr(PruneChannels, "apply", counted)
    options = [
        "--auto",
        "--prune",
        "0.5",
        "--budget",
        "5%",
        "--recipe.backend",
        "onnxruntime",
        "--recipe.tolerance",
        "0.2",
    ]
    assert main([command_line[0], *options, *command_line[1:]]) == 0
    [published] = [open_model(command_line[command_line.index("--to") + 1]).stable()]
    content = json.loads(published.read("report.json"))
    assert [each["name"] for each in content["candidates"] if each["chosen"]] == ["pruned-50% int8 on onnxruntime"]
    assert len(applied) == 1, "fine-tuning takes long"
    assert content["recipe"]["prune"] == 0.5
    assert "pruned-50%" in capsys.readouterr().out


def test_a_module_that_cannot_be_pruned_ends_no_search(
    source: Source, fast_when_pruned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(*_: Any) -> nn.Module:
        tried.append(1)
        raise GateError("Tiny cannot be pruned: why.")

    monkeypatch.setattr(PruneChannels, "apply", fails)
    monkeypatch.setattr(workbench, "apart", lambda work, *_: work())  # what it counts in another process is lost
    proof = prove(source, sl.Recipe(precision="auto", backend="onnxruntime", prune=0.5))
    assert "pruned-50%: Tiny cannot be pruned: why." in proof.refused
    assert len(tried) == 1
    assert any(str(each.plan) == "int8 on onnxruntime" for each in proof.candidates)
