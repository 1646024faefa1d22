"""A server takes traffic only after it has answered its golden rows as the trained module did."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
from commands import serve_fails
from helpers import free_port
from serving import ROWS, TABLE, check_works, publish_all, publish_identity, register_double, web

from shipline.artifact import GOLDEN, GOLDEN_TENSORS, PROCESSING, Artifact, ArtifactManifest
from shipline.backends.onnx import OnnxBackend
from shipline.errors import IntegrityError, NotFoundError, SchemaError, ServingError, ShiplineError, SignatureError
from shipline.processing import Columns, Labels, Processing, Softmax
from shipline.serve.metrics import Metrics
from shipline.serve.model import ServedModel
from shipline.serve.server import BackgroundServer, Serving
from shipline.store import FileEntry
from shipline.store.commit import MANIFEST, seal

GRAPH = artifacts.linear()
GOOD = GRAPH.golden["x"]
OUTPUTS = GRAPH.function(GRAPH.golden)["y"]


def never_ready(url: str | Path) -> ShiplineError:
    """What the server ends with, without any model having taken traffic before."""
    serving = Serving(str(url), port=0)
    took_traffic: list[str] = []

    def take_traffic(model: ServedModel) -> None:
        took_traffic.append(model.name)
        serving.stop()

    serving._app.repository._on_ready = take_traffic
    with pytest.raises(ShiplineError) as caught:
        serving.run()
    assert not serving.ready
    assert took_traffic == []
    return caught.value


def off_by(difference: float, row: int) -> dict[str, bytes]:
    """Golden rows whose expected numbers differ in one place."""
    outputs = OUTPUTS.copy()
    outputs[row, 1] += difference
    return artifacts.golden_files({"x": GOOD}, {"y": outputs})


@pytest.mark.parametrize("row", range(len(GOOD)))
def test_expected_numbers_that_the_graph_does_not_give(tmp_path: Path, row: int) -> None:
    artifacts.publish(f"{tmp_path}/m", GRAPH, files=off_by(0.5, row))
    error = never_ready(tmp_path)
    assert isinstance(error, ServingError)
    assert f"golden row {row}: output 'y' differs by 0.5; 1e-05 is allowed" in str(error)
    assert "Model 'm' version 1 is wrong on this machine" in str(error)
    assert "takes no traffic" in str(error)


def test_a_graph_with_other_weights_and_right_digests(tmp_path: Path) -> None:
    """Nothing is damaged: somebody published the wrong graph beside the right golden rows."""
    other = artifacts.linear(seed=1)
    artifacts.publish(f"{tmp_path}/m", dataclasses.replace(GRAPH, model=other.model))
    assert str(never_ready(tmp_path)).startswith(
        "Model 'm' version 1 is wrong on this machine: golden row 0: output 'y'"
    )


@pytest.mark.parametrize(("difference", "fine"), [(0.009, True), (0.011, False), (-0.009, True), (-0.011, False)])
def test_the_tolerance_is_that_of_the_artifact(tmp_path: Path, difference: float, fine: bool) -> None:
    artifacts.publish(f"{tmp_path}/linear", GRAPH, files=off_by(difference, 1), tolerance={"y": 0.01})
    if fine:
        with BackgroundServer(str(tmp_path)) as server:
            check_works(server.url)
    else:
        assert "golden row 1: output 'y' differs by 0.011; 0.01 is allowed" in str(never_ready(tmp_path))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_expected_number_that_is_none(tmp_path: Path, value: float) -> None:
    """A comparison with NaN must not pass."""
    outputs = OUTPUTS.copy()
    outputs[2, 0] = value
    artifacts.publish(f"{tmp_path}/m", GRAPH, files=artifacts.golden_files({"x": GOOD}, {"y": outputs}))
    assert "golden row 2: output 'y' differs by" in str(never_ready(tmp_path))


def test_a_graph_that_gives_nan(tmp_path: Path) -> None:
    graph = artifacts.logarithm()
    files = artifacts.golden_files({"x": np.array([[1.0, -1.0]], np.float32)}, {"y": np.zeros((1, 2), np.float32)})
    artifacts.publish(f"{tmp_path}/m", graph, files=files, tolerance={"y": 1e9})
    assert "golden row 0: output 'y' differs by nan" in str(never_ready(tmp_path))


def test_a_graph_that_raises_for_a_golden_row(tmp_path: Path) -> None:
    inputs, outputs = {"index": np.array([0, 99])}, {"row": np.zeros((2, 2), np.float32)}
    graph = artifacts.lookup()
    files = artifacts.golden_files(inputs, outputs)
    artifacts.publish(f"{tmp_path}/m", graph, files=files, tolerance={"row": 1e9})
    assert "golden row 1: it raises" in str(never_ready(tmp_path))


def test_whole_numbers_and_truths_are_compared_too(tmp_path: Path) -> None:
    graph = artifacts.masked()
    outputs = graph.function(graph.golden)
    wrong = outputs | {"dropped": ~outputs["dropped"]}
    artifacts.publish(f"{tmp_path}/m", graph, files=artifacts.golden_files(graph.golden, wrong))
    assert "golden row 0: output 'dropped' differs by 1" in str(never_ready(tmp_path))


def processing(**changes: Any) -> Processing:
    """The processing of the table, changed."""
    columns = {"numeric": ("age", "height"), "categorical": {"colour": ("red", "blue")}}
    names = changes.pop("names", ("low", "middle", "high"))
    after = changes.pop("after", [Softmax(), Labels(names=names)])
    return Processing(before=[Columns(**{**columns, **changes})], after=after)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (processing(numeric=("height", "age")), "golden row 0: its raw input becomes another 'x' than at export"),
        (processing(categorical={"colour": ("blue", "red")}), "its raw input becomes another 'x' than at export"),
        (processing(numeric=("age", "weight")), "golden row 0: its raw input is refused: Unknown column 'height'"),
        (processing(categorical={}, numeric=("age", "height", "colour")), "its raw input is refused: Column 'colour'"),
        (
            processing(names=("high", "middle", "low")),
            "golden row 0: the trained module's outputs become another answer",
        ),
        (processing(after=[]), "the trained module's outputs become another answer than at export"),
        (processing(after=[Labels(names=("low", "middle", "high"))]), "outputs become another answer than at export"),
    ],
)
def test_processing_that_changed(tmp_path: Path, changed: Processing, says: str) -> None:
    """Before the model, and after it: labels in another order are the worst kind of wrong."""
    artifacts.publish(f"{tmp_path}/m", TABLE, raw=ROWS, files={PROCESSING: changed.to_json()})
    error = never_ready(tmp_path)
    assert isinstance(error, ServingError)
    assert says in str(error)


def test_processing_that_did_not_change_is_fine(tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/m", TABLE, raw=ROWS, files={PROCESSING: processing().to_json()})
    with BackgroundServer(str(tmp_path)) as server:
        assert web.post(f"{server.url}/models/m/predict", json=ROWS.inputs[0]).status_code == 200


def golden_json(**changes: Any) -> dict[str, bytes]:
    return {GOLDEN: json.dumps({"schema_version": 1, "count": 3, "rows": [], **changes}).encode()}


X, Y = GOOD, OUTPUTS


@pytest.mark.parametrize(
    ("files", "kind", "says"),
    [
        (artifacts.golden_files({"x": X[:0]}, {"y": Y[:0]}), IntegrityError, "no golden rows"),
        (golden_json(count=0), IntegrityError, "no golden rows"),
        (golden_json(count=2), IntegrityError, "some without answers"),
        (golden_json(count=4), IntegrityError, "some without answers"),
        (golden_json(rows=[{"raw": {"json": 1}, "answer": 1}]), IntegrityError, "some without answers"),
        (artifacts.golden_files({"x": X}, {"y": Y[:2]}), IntegrityError, "some without answers"),
        (artifacts.golden_files({"x": X}, {}), SignatureError, "Missing output 'y'"),
        (artifacts.golden_files({"u": X}, {"y": Y}), SignatureError, "Unknown input 'u'; known: x"),
        (artifacts.golden_files({"x": X}, {"y": Y, "z": Y}), SignatureError, "Unknown output 'z'; known: y"),
        (artifacts.golden_files({"x": X[:, :2]}, {"y": Y}), SignatureError, r"must have shape [-1, 4]; got [3, 2]"),
        (artifacts.golden_files({"x": X.astype(np.float64)}, {"y": Y}), SignatureError, "must be float32; got float64"),
        ({GOLDEN: b"{}"}, ShiplineError, "Loading failed: KeyError"),
        ({GOLDEN: b"no json"}, ShiplineError, "Loading failed: JSONDecodeError"),
        ({GOLDEN_TENSORS: b"no tensors"}, ShiplineError, "Loading failed: SafetensorError"),
        ({artifacts.MODEL_FILE: b"no graph"}, ShiplineError, "Loading failed: "),
        (
            {PROCESSING: b'{"schema_version": 1, "before": [{"step": "x"}], "after": []}'},
            IntegrityError,
            "Unknown step 'x'",
        ),
        ({PROCESSING: b'{"schema_version": 99}'}, SchemaError, "schema version 99; this Shipline reads up to 1"),
    ],
)
def test_golden_rows_that_prove_nothing(
    tmp_path: Path, files: dict[str, bytes], kind: type[ShiplineError], says: str
) -> None:
    artifacts.publish(f"{tmp_path}/m", GRAPH, files=files)
    error = never_ready(tmp_path)
    assert isinstance(error, kind)
    assert says in str(error)


@pytest.mark.parametrize("missing", [GOLDEN, GOLDEN_TENSORS, artifacts.MODEL_FILE])
def test_an_artifact_without_one_of_its_files(tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: data for name, data in artifacts.artifact_files(GRAPH).items() if name != missing}
    monkeypatch.setattr(artifacts, "artifact_files", lambda graph, raw: files)
    artifacts.publish(f"{tmp_path}/m", GRAPH)
    error = never_ready(tmp_path)
    assert isinstance(error, IntegrityError)
    assert f"has no file '{missing}'" in str(error)


def test_an_unknown_backend_names_those_that_there_are(tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/m", GRAPH, backend="onnxrutime")
    assert "Unknown backend 'onnxrutime'. Did you mean 'onnxruntime'?" in str(never_ready(tmp_path))


def test_one_bad_model_among_good_ones_stops_the_server(tmp_path: Path) -> None:
    publish_all(tmp_path)
    artifacts.publish(f"{tmp_path}/zebra", GRAPH, files=off_by(1.0, 0))
    serving = Serving(str(tmp_path), port=0)
    with pytest.raises(ServingError, match="Model 'zebra' version 1 is wrong"):
        serving.run()
    assert not serving.ready


def test_golden_rows_take_the_path_that_requests_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, through the batcher; the model has run before anybody asks."""
    register_double(monkeypatch)
    publish_identity(tmp_path / "gated")
    with BackgroundServer(str(tmp_path)) as server:
        backend = server._serving._app.repository.get("gated")._backend
        assert backend.sizes[-2:] == [1, 1]  # type: ignore[attr-defined]
        assert backend.batches[-1]["x"].tolist() == [[2]]  # type: ignore[attr-defined]
        assert backend.sizes[0] == 8  # type: ignore[attr-defined] # warmed up with a full batch
    assert backend.closed  # type: ignore[attr-defined]


def test_a_model_that_failed_gives_back_its_backend_and_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[ServedModel] = []
    close = ServedModel.close
    monkeypatch.setattr(ServedModel, "close", lambda model: (closed.append(model), close(model)))
    register_double(monkeypatch)
    publish_identity(
        tmp_path / "m",
        files=artifacts.golden_files({"x": np.ones((1, 1), np.float32)}, {"y": np.zeros((1, 1), np.float32)}),
    )
    never_ready(tmp_path)
    assert [model._backend.closed for model in closed] == [True]  # type: ignore[attr-defined]


def test_a_model_of_free_sizes_is_timed_with_a_real_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of size 1 would seem fast enough for the event loop, whatever real rows cost."""
    seen: list[tuple[int, ...]] = []
    run = OnnxBackend.run
    monkeypatch.setattr(OnnxBackend, "run", lambda self, inputs: (seen.append(inputs["x"].shape), run(self, inputs))[1])
    artifacts.publish(f"{tmp_path}/total", artifacts.total())
    with BackgroundServer(str(tmp_path)):
        assert seen[0] == (artifacts.MAX_BATCH, 3)


# What is on the disk, damaged; each names what it found, and where.
DAMAGE: dict[str, tuple[Callable[[Path], Any], type[ShiplineError], str]] = {
    "a flipped byte in the graph": (lambda m: flip(stored(m, artifacts.MODEL_FILE)), IntegrityError, "is damaged: its"),
    "a flipped byte in the golden rows": (lambda m: flip(stored(m, GOLDEN_TENSORS)), IntegrityError, "is damaged: its"),
    "a flipped byte in the manifest": (lambda m: flip(m / MANIFEST), IntegrityError, "is damaged"),
    "a cut graph": (lambda m: cut(stored(m, artifacts.MODEL_FILE)), IntegrityError, "its manifest says"),
    "a graph that is gone": (lambda m: stored(m, artifacts.MODEL_FILE).unlink(), IntegrityError, "is missing, though"),
    "golden rows that are gone": (lambda m: stored(m, GOLDEN).unlink(), IntegrityError, "is missing, though"),
    "a manifest that is gone": (lambda m: (m / MANIFEST).unlink(), NotFoundError, "no version '1'"),
    "an empty manifest": (lambda m: (m / MANIFEST).write_bytes(b""), IntegrityError, "is no manifest of Shipline"),
    "a newer manifest": (
        lambda m: (m / MANIFEST).write_bytes((m / MANIFEST).read_bytes().replace(b'_version": 1', b'_version": 7', 1)),
        SchemaError, "has schema version 7; this Shipline reads up to 1. Upgrade: pip install -U shipline",
    ),
    "a model that points outside": (lambda m: point_outside(m), ShiplineError, "is no key"),
    "nothing at all": (lambda m: shutil.rmtree(m), NotFoundError, "no version '1'"),
}  # fmt: skip


def stored(version: Path, name: str) -> Path:
    return version / Artifact.open(str(version), ArtifactManifest).manifest.files[name].key


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def point_outside(version: Path) -> None:
    manifest = Artifact.open(str(version), ArtifactManifest).manifest
    entry = manifest.files[artifacts.MODEL_FILE]
    outside = FileEntry(key=f"../{entry.key}", size=entry.size, sha256=entry.sha256)
    _, data = seal(manifest.model_copy(update={"files": {**manifest.files, artifacts.MODEL_FILE: outside}}))
    (version / MANIFEST).write_bytes(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_not_served(tmp_path: Path, damage: str) -> None:
    artifacts.publish(f"{tmp_path}/m", GRAPH)
    change, kind, says = DAMAGE[damage]
    change(tmp_path / "m" / "1")
    error = never_ready(tmp_path / "m")
    assert isinstance(error, kind)
    assert says in str(error)


@pytest.mark.parametrize("damage", ["a flipped byte in the graph", "golden rows that are gone", "a newer manifest"])
def test_the_command_says_why_and_ends_with_1(tmp_path: Path, damage: str) -> None:
    artifacts.publish(f"{tmp_path}/m", GRAPH)
    change, _, says = DAMAGE[damage]
    change(tmp_path / "m" / "1")
    code, said = serve_fails(str(tmp_path / "m"), "--port", str(free_port()))
    assert code == 1
    assert says in said
    assert "shipline serve: " in said.splitlines()[-1]
    assert "Traceback" not in said


def test_the_command_ends_with_1_when_the_numbers_are_wrong(tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/m", GRAPH, files=off_by(0.25, 2))
    code, said = serve_fails(str(tmp_path), "--port", str(free_port()))
    assert code == 1
    assert "golden row 2: output 'y' differs by 0.25; 1e-05 is allowed" in said
    assert "is ready" not in said
    assert "Traceback" not in said


def test_metrics_never_call_a_failed_model_ready(tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/m", GRAPH, files=off_by(1.0, 0))
    serving = Serving(str(tmp_path), port=0)
    with pytest.raises(ServingError):
        serving.run()
    metrics: Metrics = serving._app.metrics
    assert b'shipline_model_ready{model="m",version="1"} 1.0' not in metrics.exposition()
