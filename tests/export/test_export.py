"""The whole export: from a checkpoint to an artifact, on every kind of store."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch
from exported import FILES, tree
from helpers import ROOT
from small_modules import Cells, CellTable, Digits, Tiny, fit

import shipline as sl
from shipline.artifact import GOLDEN_TENSORS, PROCESSING, Artifact, find_artifacts, open_model
from shipline.backends.cores import cores
from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError
from shipline.export.plan import plan
from shipline.processing import Processing
from shipline.store import open_store
from shipline.store.commit import MANIFEST
from shipline.train import Run


def session(artifact: Artifact) -> onnxruntime.InferenceSession:
    model = artifact.read(artifact.manifest.model_file)
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def module_of(run: Run) -> Tiny:
    return Tiny.load_from_checkpoint(run.checkpoint.url).eval()


def validation_rows(count: int) -> torch.Tensor:
    data = Digits()
    data.setup("validate")
    x: torch.Tensor = data.val.tensors[0][:count]
    return x


#: The gates that compare answers.
SAME = ("parity", "batch_invariance", "not_finite", "determinism")


@pytest.mark.parametrize(
    ("precision", "gates"),
    [
        ("float32", [*SAME, "metric", "rebuilt"]),
        ("int8", [*SAME, "metric", "latency", "size", "rebuilt"]),
    ],
)
def test_an_artifact_says_what_it_is(
    artifacts: dict[str, Artifact], trained: Run, precision: str, gates: list[str]
) -> None:
    manifest = artifacts[precision].manifest
    assert (manifest.kind, manifest.name, manifest.version) == ("artifact", precision, "1")
    assert (manifest.backend, manifest.model_file, manifest.precision) == ("onnxruntime", "model.onnx", precision)
    assert str(manifest.signature) == "x: float32[-1, 64] -> output: float32[-1, 10]"
    assert set(manifest.files) == FILES
    assert manifest.serving.max_batch_size == 32
    assert 1 <= (manifest.serving.preferred_batch_size or 0) <= 32
    assert 1 <= manifest.serving.threads <= cores()
    assert [verdict.gate for verdict in manifest.verdicts] == gates
    assert all(verdict.passed for verdict in manifest.verdicts)
    metrics, allowed = trained.checkpoint.manifest.metrics, plan(precision, "onnxruntime").tolerance
    assert manifest.metrics["val_acc"] == pytest.approx(metrics["val_acc"], abs=allowed)
    assert manifest.metrics["val_loss"] == pytest.approx(metrics["val_loss"], abs=allowed)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_lineage_leads_to_the_checkpoint(artifacts: dict[str, Artifact], trained: Run, precision: str) -> None:
    lineage, checkpoint = artifacts[precision].manifest.lineage, trained.checkpoint
    assert lineage.checkpoint_digest == checkpoint.manifest.digest
    assert checkpoint.url.endswith(f"/{lineage.checkpoint}")  # where this user keeps files is nobody's business
    assert lineage.checkpoint.startswith("tiny/version_0/checkpoints/")
    assert lineage.seed == 0
    assert lineage.data_fingerprint == checkpoint.manifest.lineage.data_fingerprint is not None
    assert lineage.packages["torch"] == metadata.version("torch")


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_stated_tolerance_is_in_parts_of_the_largest_output(
    artifacts: dict[str, Artifact], trained: Run, precision: str
) -> None:
    with torch.no_grad():
        largest = float(module_of(trained)(validation_rows(256)).abs().max())
    stated = artifacts[precision].manifest.tolerance
    assert stated == {"output": pytest.approx(largest * plan(precision, "onnxruntime").tolerance, rel=1e-4)}


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_golden_rows_are_the_trained_modules_answers(
    artifacts: dict[str, Artifact], trained: Run, precision: str
) -> None:
    artifact = artifacts[precision]
    golden = safetensors.numpy.load(artifact.read(GOLDEN_TENSORS))
    with torch.no_grad():
        np.testing.assert_allclose(
            golden["output.output"], module_of(trained)(torch.from_numpy(golden["input.x"])), atol=1e-5
        )
    served = session(artifact).run(None, {"x": golden["input.x"]})[0]
    assert np.abs(served - golden["output.output"]).max() <= artifact.manifest.tolerance["output"]


@pytest.mark.parametrize("batch", [1, 3, 32, 100])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_batch_is_dynamic(artifacts: dict[str, Artifact], trained: Run, precision: str, batch: int) -> None:
    rows = validation_rows(batch)
    found = session(artifacts[precision]).run(None, {"x": rows.numpy()})[0]
    with torch.no_grad():
        expected = module_of(trained)(rows).numpy()
    assert found.shape == (batch, 10)
    assert np.abs(found - expected).max() <= artifacts[precision].manifest.tolerance["output"]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_artifact_is_one_directory_that_needs_nothing_else(artifacts: dict[str, Artifact], precision: str) -> None:
    artifact = artifacts[precision]
    keys = {entry.key for entry in artifact.manifest.files.values()}
    assert tree(artifact.url) == keys | {MANIFEST}
    model = onnx.load_from_string(artifact.read("model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.initializer
    assert not any(tensor.external_data for tensor in model.graph.initializer)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_no_path_of_this_machine_is_published(artifacts: dict[str, Artifact], trained: Run, precision: str) -> None:
    """But for the URL of the checkpoint, which the user gave, in the lineage."""
    artifact = artifacts[precision]
    runs = str(Path(trained.checkpoint.url).parents[4])
    paths = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix, os.environ.get("TMPDIR", "/tmp"), runs}
    for name, data in {name: artifact.read(name) for name in FILES}.items():
        content = data.replace(trained.checkpoint.url.encode(), b"")
        assert not [path for path in paths if path.encode() in content], name
    manifest = open_store(artifact.url).read(MANIFEST).replace(trained.checkpoint.url.encode(), b"")
    assert not [path for path in paths if path.encode() in manifest]


def test_two_exports_of_one_checkpoint_have_the_same_bytes(trained: Run, tmp_path: Path) -> None:
    """Though calibration takes a part of training rows that are shuffled, and other numbers were drawn in between."""
    lax = {"min_speedup": 0, "tolerance": 1.0, "max_metric_drop": 1}
    found = []
    for _ in range(2):
        torch.rand(1)
        artifact = sl.export(trained, {"precision": "int8", "calibration_rows": 32, **lax}, to=str(tmp_path / "m"))
        found.append(artifact.manifest.files["model.onnx"].sha256)
    assert found[0] == found[1]


def test_a_module_left_in_training_mode_is_exported_in_evaluation_mode(
    artifacts: dict[str, Artifact], trained: Run, tmp_path: Path
) -> None:
    class Left(Tiny):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.train()

        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            if batch_idx == 4:  # the last one
                self.train()

    trained.module.train()
    artifact = sl.export(trained, to=str(tmp_path / "m"), module=Left)
    assert artifact.read("model.onnx") == artifacts["float32"].read("model.onnx")
    operators = {node.op_type for node in onnx.load_from_string(artifact.read("model.onnx")).graph.node}
    assert operators == {"Gemm", "Relu"}


def test_other_metrics_that_are_not_finite_do_not_matter(trained: Run, tmp_path: Path) -> None:
    class Logs(Tiny):
        def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("val_auc", float("nan"))

    artifact = sl.export(trained, to=str(tmp_path / "m"), module=Logs)
    assert set(artifact.manifest.metrics) == {"val_acc", "val_loss"}
    assert b'"val_auc":null' in artifact.read("report.json").replace(b" ", b"")


def test_everything_on_s3(s3: str) -> None:
    run = fit(Tiny(), Digits(), f"{s3}/runs", epochs=2)
    recipe = {"precision": "int8", "min_speedup": 0, "max_metric_drop": 0.05}
    artifact = sl.export(f"{s3}/runs/tiny/best", recipe, to=f"{s3}/models/digits", module=Tiny, data=Digits())
    assert artifact.url == f"{s3}/models/digits/1"
    assert artifact.manifest.lineage.checkpoint == run.checkpoint.url
    assert artifact.manifest.lineage.checkpoint_digest == run.checkpoint.manifest.digest
    assert open_model(f"{s3}/models/digits").channels() == {"stable": {"version": "1", "weight": 100}}
    found = find_artifacts(f"{s3}/models")[0]
    assert found.manifest == artifact.manifest
    assert session(found).run(None, {"x": np.zeros((3, 64), np.float32)})[0].shape == (3, 10)
    stored = open_store(artifact.url).list()
    assert [name.partition("-")[0] for name in stored] == ["data", MANIFEST]


# ---- what is given ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_needs_a_class_and_data(trained: Run, tmp_path: Path) -> None:
    to = str(tmp_path / "m")
    with pytest.raises(ConfigError, match=r"It says 'small_modules\.Tiny', but text in a checkpoint is not trusted"):
        sl.export(trained.checkpoint, to=to, data=Digits())
    with pytest.raises(ConfigError, match="An export is proved on real rows: give data="):
        sl.export(trained.checkpoint.url, to=to, module=Tiny)
    assert tree(str(tmp_path)) == set()


def test_a_checkpoint_may_be_a_run_a_checkpoint_or_a_url(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def look(source: Any, *_: Any) -> None:
        given.append((source.lineage.checkpoint_digest, type(source.build())))

    monkeypatch.setattr("shipline.export.export", look)
    best = str(Path(trained.checkpoint.url).parents[2] / "best")
    for checkpoint in (trained, trained.checkpoint, trained.checkpoint.url, best):
        sl.export(checkpoint, to=str(tmp_path / "m"), module=Tiny, data=Digits())
    assert given == [(trained.checkpoint.manifest.digest, Tiny)] * 4


def test_data_that_validates_nothing_is_refused(trained: Run, tmp_path: Path) -> None:
    class TrainOnly(Digits):
        def val_dataloader(self) -> Any:
            return None

    with pytest.raises(ConfigError, match="There is no data to validate"):
        sl.export(trained, to=str(tmp_path / "m"), data=TrainOnly())


def test_a_run_that_kept_no_checkpoint_is_refused(tmp_path: Path) -> None:
    run = fit(Tiny(), Digits(), tmp_path, epochs=1, limit_train_batches=1, callbacks=[], enable_checkpointing=False)
    with pytest.raises(ValueError, match="The run wrote no checkpoint"):
        sl.export(run, to=str(tmp_path / "m"))


# ---- a user's first model --------------------------------------------------------------------------------------------


def test_a_table_of_real_cells_goes_from_json_to_a_diagnosis(trained_cells: Run, tmp_path: Path) -> None:
    """What a server will do with the artifact, and nothing but the artifact, answers as the trained module does."""
    artifact = sl.export(trained_cells, to=str(tmp_path / "models" / "cells"))
    assert artifact.manifest.metrics["val_acc"] > 0.9
    assert [verdict.gate for verdict in artifact.manifest.verdicts][-1] == "preprocessing"

    processing, runtime = Processing.from_json(artifact.read(PROCESSING)), session(artifact)
    module, table = Cells.load_from_checkpoint(trained_cells.checkpoint.url).eval(), CellTable()
    table.setup("validate")
    for raw in list(table.raw_rows())[:5]:
        row = processing.prepare(raw)[None]
        served = processing.answer(runtime.run(None, {"x": row})[0][0])
        with torch.no_grad():
            expected = table.processing.answer(module(torch.from_numpy(row))[0].numpy())
        assert served["label"] == expected["label"]
        assert served["score"] == pytest.approx(expected["score"], abs=1e-4)


def test_the_command_line_exports_and_onnxruntime_reports_nothing_home(trained: Run, tmp_path: Path) -> None:
    """onnxruntime writes the program's path and an id of the machine there, unless it is told not to."""
    home, config = tmp_path / "home", tmp_path / "train.yaml"
    home.mkdir()
    config.write_text(
        f"import_path: ['{ROOT / 'tests/support'}']\nmodule: {{class_path: small_modules.Tiny}}\n"
        "data: {class_path: small_modules.Digits}\ntrainer: {enable_progress_bar: false}\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    done = subprocess.run(
        [sys.executable, "-m", "shipline", "export", trained.checkpoint.url, "--run_config", str(config),
         "--to", str(tmp_path / "models" / "digits")],
        cwd=tmp_path, env={**environment, "HOME": str(home)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "batch_invariance" in done.stdout
    assert f"Published: {tmp_path}/models/digits/1" in done.stdout
    assert open_checkpoint(trained.checkpoint.url).manifest.digest == (
        open_model(str(tmp_path / "models" / "digits")).stable().manifest.lineage.checkpoint_digest
    )
    assert [path for path in tree(str(home)) if "onnx" in path.lower()] == []
