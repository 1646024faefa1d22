"""ONNX files from elsewhere: tried, published and served like any other; what cannot be is said."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
from onnx import helper, numpy_helper
from small_modules import Tiny

import shipline as sl
from shipline.artifact import Artifact, open_model
from shipline.commands import main
from shipline.errors import ConfigError, GateError, ShiplineError, SignatureError
from shipline.export.foreign import import_onnx
from shipline.serve.golden import GoldenRows
from shipline.serve.server import BackgroundServer

GRAPHS = {name: getattr(artifacts, name)() for name in ("linear", "masked", "lookup", "logarithm")}


def imported(data: bytes, to: Path, **options: Any) -> Artifact:
    return import_onnx(data, open_model(f"{to}/models/theirs"), **options)


def refused(data: bytes, to: Path, error: type[ShiplineError] = GateError, **options: Any) -> str:
    """What is said of the failure; nothing may be left."""
    with pytest.raises(error) as caught:
        imported(data, to, **options)
    assert not (to / "models").exists(), "something was left in the store"
    return str(caught.value)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_file_with_rows_and_answers_is_served(name: str, tmp_path: Path) -> None:
    graph = GRAPHS[name]
    golden = safetensors.numpy.save({**graph.golden, **graph.function(graph.golden)})
    artifact = imported(graph.model, tmp_path, golden=golden)
    assert artifact.manifest.signature == graph.signature
    assert [verdict.gate for verdict in artifact.manifest.verdicts] == ["parity", "batch_invariance"]
    with BackgroundServer(f"{tmp_path}/models") as server, sl.Client(server.url) as client:
        for output, want in graph.function(graph.golden).items():
            np.testing.assert_allclose(client.infer("theirs", graph.golden)[output], want, rtol=1e-5, atol=1e-6)


def test_without_rows_some_are_made_up_and_the_verdict_says_so(tmp_path: Path) -> None:
    artifact = imported(GRAPHS["linear"].model, tmp_path)
    assert artifact.manifest.precision == "imported"
    assert artifact.manifest.verdicts[0].message.startswith(
        "nobody said what is right: the answers to made-up rows are"
    )
    rows = GoldenRows(artifact)
    want = GRAPHS["linear"].function(rows.inputs)
    for name, array in rows.outputs.items():
        np.testing.assert_allclose(array, want[name], rtol=1e-5)


def test_answers_that_no_server_could_compare_are_refused(tmp_path: Path) -> None:
    said = refused(GRAPHS["logarithm"].model, tmp_path)
    assert re.search("'y' is NaN or infinite for [1-8] of 8 made-up rows, first for row [0-7], and no server", said)
    rows = safetensors.numpy.save({"x": -np.ones((3, 2), np.float32)})
    assert "for 3 of 3 golden rows, first for row 0" in refused(GRAPHS["logarithm"].model, tmp_path, golden=rows)


def test_rows_without_answers(tmp_path: Path) -> None:
    graph = GRAPHS["linear"]
    artifact = imported(graph.model, tmp_path, golden=safetensors.numpy.save(graph.golden))
    assert "the answers to the given rows are the file's own" in artifact.manifest.verdicts[0].message
    np.testing.assert_array_equal(GoldenRows(artifact).inputs["x"], graph.golden["x"])


def test_wrong_answers_are_named(tmp_path: Path) -> None:
    graph = GRAPHS["linear"]
    answers = {name: array.copy() for name, array in graph.function(graph.golden).items()}
    next(iter(answers.values()))[1] += 1
    said = refused(graph.model, tmp_path, golden=safetensors.numpy.save({**graph.golden, **answers}))
    assert said.startswith("theirs failed 1 of 2 gates; nothing was published:\n  parity: ")
    assert "row 1, output" in said


def test_a_batch_that_was_fixed_at_one_is_let_free(tmp_path: Path) -> None:
    """As most files are that were exported without saying otherwise."""
    x = torch.rand(1, 64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, of itself
        program = torch.onnx.export(
            Tiny().eval(), (x,), input_names=["x"], output_names=["y"], dynamo=True, verbose=False
        )
    assert program is not None
    data = program.model_proto.SerializeToString()
    artifact = imported(data, tmp_path)
    assert str(artifact.manifest.signature) == "x: float32[-1, 64] -> y: float32[-1, 10]"


def model_of(nodes: list[Any], inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], **constants: Any) -> bytes:
    """An ONNX file of floats."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def test_a_graph_that_keeps_its_batch_is_refused(tmp_path: Path) -> None:
    fixed = model_of(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])], {"x": [1, 4]}, {"y": [4]}, shape=np.array([-1])
    )
    said = refused(fixed, tmp_path, SignatureError)
    assert "Two rows gave 'y' of shape [8]; its first dimension must be the batch" in said


def test_rows_that_depend_on_each_other_are_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    said = refused(model_of(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, axes=np.array([0])), tmp_path)
    assert "batch_invariance: a row's answer alone and among others differs by" in said


def test_rows_of_no_known_size_must_be_given(tmp_path: Path) -> None:
    graph = artifacts.total()
    assert "how large is a row? Give some" in refused(graph.model, tmp_path, SignatureError)
    artifact = imported(graph.model, tmp_path, golden=only("x", (3, 5), np.float32))
    assert artifact.manifest.signature.inputs[0].shape == (-1, -1)


@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_weights_in_other_files_are_never_read(tmp_path: Path, where: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1024))
    model = onnx.load_from_string(GRAPHS["linear"].model)
    tensor = model.graph.initializer[0]
    if where == "constant":
        node = helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(0, node)
        del model.graph.initializer[0]
        tensor = model.graph.node[0].attribute[0].t
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(secret))
    said = refused(model.SerializeToString(), tmp_path)
    assert "The file keeps 1 of its weights in other files" in said
    assert "Nothing outside is read" in said


def classifier_of(labels: str, scores: str) -> bytes:
    """A classifier as scikit-learn's converter makes it: labels, and scores as a tensor or as maps."""
    text, value = labels == "strings", helper.make_tensor_value_info
    named = {"classlabels_strings": ["a", "b"]} if text else {"classlabels_ints": [0, 1]}
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "scores"],
            None,
            None,
            "ai.onnx.ml",
            coefficients=[1.0, -1.0],
            intercepts=[0.0, 0.5],
            **named,
        )
    ]
    outputs = [value("label", onnx.TensorProto.STRING if text else onnx.TensorProto.INT64, ["n"])]
    if scores == "maps":
        nodes.append(
            helper.make_node("ZipMap", ["scores"], ["by_class"], None, None, "ai.onnx.ml", classlabels_int64s=[0, 1])
        )
        score = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
        maps = helper.make_sequence_type_proto(helper.make_map_type_proto(onnx.TensorProto.INT64, score))
        outputs.append(helper.make_value_info("by_class", maps))
    else:
        outputs.append(value("scores", onnx.TensorProto.FLOAT, ["n", 2]))
    graph = helper.make_graph(nodes, "g", [value("x", onnx.TensorProto.FLOAT, ["n", 1])], outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


@pytest.mark.parametrize(
    ("labels", "scores", "said"),
    [
        ("strings", "tensor", "'label' is of STRING, which golden rows cannot hold; they hold bool, uint8"),
        ("numbers", "maps", "'by_class' is a sequence, and no tensor. .* options={'zipmap': False}"),
    ],
)
def test_answers_that_are_no_numbers_are_refused(labels: str, scores: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match=said):
        imported(classifier_of(labels, scores), tmp_path)


def test_a_classifier_of_scikit_learn_with_scores_as_a_tensor(tmp_path: Path) -> None:
    outputs = imported(classifier_of("numbers", "tensor"), tmp_path).manifest.signature.outputs
    assert [(spec.name, spec.dtype, spec.shape) for spec in outputs] == [
        ("label", "int64", (-1,)),
        ("scores", "float32", (-1, 2)),
    ]


def test_text_is_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value("x", onnx.TensorProto.STRING, ["n", 2])],
        [value("y", onnx.TensorProto.STRING, ["n", 2])],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    assert "'x' is of STRING, which golden rows cannot hold" in refused(data, tmp_path, SignatureError)


def test_a_graph_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    data = model_of([helper.make_node("Identity", ["c"], ["y"])], {}, {"y": [2]}, c=np.ones(2, np.float32))
    assert "no inputs, or no outputs" in refused(data, tmp_path, SignatureError)


def test_of_many_rows_some_are_kept(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    artifact = imported(GRAPHS["linear"].model, tmp_path, golden=safetensors.numpy.save({"x": rows}))
    assert 32 <= GoldenRows(artifact).count <= 33


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x80\x04K\x01."])
def test_what_is_no_onnx_file_is_refused(data: bytes, tmp_path: Path) -> None:
    assert "This is no ONNX file that can be served" in refused(data, tmp_path)


def only(name: str, shape: tuple[int, ...], dtype: Any) -> bytes:
    """A file with one array."""
    return safetensors.numpy.save({name: np.ones(shape, dtype)})


@pytest.mark.parametrize(
    ("golden", "error", "said"),
    [
        (b"no rows", ConfigError, "The golden rows are no safetensors file"),
        (
            only("z", (2, 4), np.float32),
            SignatureError,
            "The golden rows have z, but no x.",
        ),
        (
            only("x", (2, 5), np.float32),
            SignatureError,
            "must have shape [-1, 4]; got [2, 5]",
        ),
        (only("x", (2, 4), np.float64), SignatureError, "must be float32; got float64"),
        (only("x", (0, 4), np.float32), SignatureError, "at least one"),
    ],
)
def test_rows_that_do_not_fit_are_refused(golden: bytes, error: Any, said: str, tmp_path: Path) -> None:
    assert said in refused(GRAPHS["linear"].model, tmp_path, error, golden=golden)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0; set a whole number from 1 on"),
        ({"timeout": 0.0}, "timeout is 0; set seconds, above 0 and up to 1000000"),
        ({"timeout": float("nan")}, "timeout is nan"),
    ],
)
def test_settings_that_are_wrong(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refused(GRAPHS["linear"].model, tmp_path, ConfigError, **settings)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "theirs.onnx"
    file.write_bytes(GRAPHS["linear"].model)
    to = ["--name", "theirs", "--to", f"{tmp_path}/models"]
    assert main(["import", str(file), *to]) == 0
    assert "theirs version 1 (imported on onnxruntime)" in capsys.readouterr().out
    assert main(["import", str(file), *to, "--version", "1"]) == 1
    assert "theirs has version 1 already" in capsys.readouterr().err
    assert main(["import", str(tmp_path / "none.onnx"), *to]) == 1
    assert "none.onnx" in capsys.readouterr().err
    for name in ("../x", "a/b", ""):
        assert main(["import", str(file), "--name", name, "--to", f"{tmp_path}/models"]) == 2
        assert f"{name!r} is no model name" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.onnx", "models"}
    assert main(["import", "--name", "x", "--to", "y"]) == 2
    assert "Which file? Give it first" in capsys.readouterr().err
