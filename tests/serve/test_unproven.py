"""Plain model files beside artifacts: tensors alone, and nobody's promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from serving import ANYBODY, GRAPHS, check_error, infer, tensor, web

from shipline.artifact import ServingSettings
from shipline.backends import examination
from shipline.backends.onnx import OnnxBackend
from shipline.errors import ServingError
from shipline.serve.server import BackgroundServer
from shipline.serve.unproven import UNPROVEN, find_unproven

LINEAR = GRAPHS["linear"].model


def graph(
    node: str, inputs: dict[str, Any], outputs: dict[str, Any], kind: int = TensorProto.FLOAT, **attributes: Any
) -> bytes:
    """A graph of one node."""
    body = helper.make_graph(
        [helper.make_node(node, list(inputs), list(outputs), **attributes)],
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs.items()],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("where", ["plain.onnx", "plain/model.onnx", "plain/3/model.onnx"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside artifacts", "alone"])
def test_a_plain_file_serves_tensors_and_says_that_nobody_proved_it(tmp_path: Path, where: str, beside: bool) -> None:
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_bytes(LINEAR)
    if beside:
        artifacts.publish(f"{tmp_path}/linear", GRAPHS["linear"])
    with BackgroundServer(str(tmp_path)) as server:
        body = {"inputs": [tensor("x", np.ones((2, 4), np.float32), "FP32")]}
        found = web.post(f"{server.url}/v2/models/plain/infer", json=body).json()
        expected = GRAPHS["linear"].function({"x": np.ones((2, 4), np.float32)})["y"]
        np.testing.assert_allclose(np.reshape(found["outputs"][0]["data"], (2, 3)), expected, rtol=1e-5)
        said = web.get(f"{server.url}/v2/models/plain").json()
        assert said["versions"] == ["3" if "3" in where else "1"]
        assert (said["parameters"]["precision"], said["parameters"]["verdicts"]) == (UNPROVEN, [])
        check_error(web.post(f"{server.url}/models/plain/predict", json=[1]), 400, "no processing")
        assert "/v2/models/plain/infer" in web.get(f"{server.url}/openapi.json").json()["paths"]
        names = {item["name"] for item in web.post(f"{server.url}/v2/repository/index").json()}
        assert names == ({"plain", "linear"} if beside else {"plain"})
        if beside:
            infer(server.url)


def test_one_file_is_served_by_its_url(tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_bytes(LINEAR)
    with BackgroundServer(str(tmp_path / "mine.onnx")) as server:
        assert web.get(f"{server.url}/v2/models/mine/ready").status_code == 200


def test_a_file_that_came_later_is_loaded_and_changes_are_taken_up(tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/linear", GRAPHS["linear"])
    with BackgroundServer(str(tmp_path), settings=ANYBODY) as server:
        load = f"{server.url}/v2/repository/models/late/load"
        check_error(web.post(load), 404)
        (tmp_path / "late.onnx").write_bytes(LINEAR)
        assert web.post(load).status_code == 200
        (tmp_path / "late.onnx").write_bytes(b"no graph")
        check_error(web.post(load), 422, "server's log")
        assert web.get(f"{server.url}/v2/models/late/ready").status_code == 200


def test_an_artifact_comes_before_a_plain_file_of_its_name(tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/linear", GRAPHS["linear"])
    (tmp_path / "linear.onnx").write_bytes(b"no graph")
    with BackgroundServer(str(tmp_path)) as server:
        assert web.get(f"{server.url}/v2/models/linear").json()["parameters"]["precision"] == "float32"


def test_texts_go_in_and_come_out(tmp_path: Path) -> None:
    shape = {"x": ["n", 2]}
    (tmp_path / "echo.onnx").write_bytes(graph("Identity", shape, {"y": ["n", 2]}, TensorProto.STRING))
    with BackgroundServer(str(tmp_path)) as server:
        path = f"{server.url}/v2/models/echo/infer"
        item = {"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "é"]}
        assert web.post(path, json={"inputs": [item]}).json()["outputs"][0]["data"] == ["a", "é"]
        raw = b"\x03\0\0\0a\0b\x02\0\0\0\xc3\xa9"
        described = {"name": "x", "shape": [1, 2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
        head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
        headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
        answer = web.post(path, content=head + raw, headers=headers)
        assert answer.content[int(answer.headers["inference-header-content-length"]) :] == raw
        bad = b"\x01\0\0\0\xff\x00\0\0\0"
        head = head.replace(b": 13}", b": 9}")
        headers["inference-header-content-length"] = str(len(head))
        check_error(web.post(path, content=head + bad, headers=headers), 400, "no UTF-8")
        item["data"] = ["a", "\0"]
        check_error(web.post(path, json={"inputs": [item]}), 400, "NUL")
        config = web.get(f"{server.url}/v2/models/echo/config").json()
        assert config["input"] == [{"name": "x", "data_type": "TYPE_STRING", "dims": [2]}]


def test_a_text_as_long_as_one_likes_is_not_for_the_event_loop(tmp_path: Path) -> None:
    (tmp_path / "echo.onnx").write_bytes(graph("Identity", {"x": ["n", 2]}, {"y": ["n", 2]}, TensorProto.STRING))
    with BackgroundServer(str(tmp_path)) as server:
        assert server._serving._app.repository.get("echo")._batcher._threads is not None


def test_what_is_as_large_as_its_input_says_is_not_for_the_event_loop(tmp_path: Path) -> None:
    """A row, and the sum of all numbers below the largest of its batch."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Range", ["zero", "most", "one"], ["below"]),
        helper.make_node("ReduceSum", ["below"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.INT64, ["n", 1])] for name in "xy")
    numbers = [helper.make_tensor(name, TensorProto.INT64, (), [value]) for name, value in (("zero", 0), ("one", 1))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs, numbers),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    (tmp_path / "sums.onnx").write_bytes(model.SerializeToString())
    with BackgroundServer(str(tmp_path)) as server:
        assert server._serving._app.repository.get("sums")._batcher._threads is not None


def test_the_docs_have_examples_of_texts(tmp_path: Path) -> None:
    (tmp_path / "echo.onnx").write_bytes(graph("Identity", {"s": ["n", 2]}, {"t": ["n", 2]}, TensorProto.STRING))
    with BackgroundServer(str(tmp_path)) as server:
        paths = web.get(f"{server.url}/openapi.json").json()["paths"]
        for path in ("/v2/models/echo/infer", "/v1/models/echo:predict"):
            example = paths[path]["post"]["requestBody"]["content"]["application/json"]["example"]
            assert web.post(server.url + path, json=example).status_code == 200


def test_a_batch_of_one_alone_is_served_as_such(tmp_path: Path) -> None:
    (tmp_path / "one.onnx").write_bytes(graph("Relu", {"x": [1, 2]}, {"y": [1, 2]}))
    with BackgroundServer(str(tmp_path)) as server:
        path = f"{server.url}/v2/models/one/infer"
        body = {"inputs": [tensor("x", np.ones((1, 2), np.float32), "FP32")]}
        assert web.post(path, json=body).json()["outputs"][0]["data"] == [1, 1]
        body = {"inputs": [tensor("x", np.ones((2, 2), np.float32), "FP32")]}
        check_error(web.post(path, json=body), 400, "1 to 1 rows")


def test_a_convolution_of_any_size_is_tried_with_a_picture_large_enough(tmp_path: Path) -> None:
    size = {"x": ["n", 1, "h", "w"]}
    (tmp_path / "pool.onnx").write_bytes(graph("MaxPool", size, {"y": ["n", 1, "a", "b"]}, kernel_shape=[5, 5]))
    with BackgroundServer(str(tmp_path)) as server:
        body = {"inputs": [tensor("x", np.ones((1, 1, 6, 6), np.float32), "FP32")]}
        assert web.post(f"{server.url}/v2/models/pool/infer", json=body).json()["outputs"][0]["shape"] == [1, 1, 2, 2]


HUGE = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.0])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "cannot be served"),
        (b"no graph", "cannot be served"),
        (LINEAR[:-20], "cannot be served"),
        (graph("Relu", {"x": [3, 2]}, {"y": [3, 2]}), "its batch is always 3"),
        (graph("Relu", {"x": []}, {"y": []}), "has no batch dimension"),
        (graph("ReduceSum", {"x": ["n", 2]}, {"y": []}, keepdims=0), "do not have the batch"),
        (graph("Identity", {"x": ["n"]}, {"y": ["n"]}, TensorProto.COMPLEX64), "cannot be served"),
    ],
    ids=["empty", "text", "cut", "fixed", "scalar", "no batch out", "complex"],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "bad.onnx").write_bytes(data)
    with pytest.raises(ServingError, match=says), BackgroundServer(str(tmp_path)):
        pass


def test_weights_in_other_files_are_not_read(tmp_path: Path) -> None:
    model = onnx.load_from_string(LINEAR)
    (tmp_path / "secret").write_bytes(bytes(4 * 3 * 4))
    weight = next(item for item in model.graph.initializer if len(item.dims) == 2)
    weight.ClearField("raw_data")
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="secret")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ServingError, match="cannot be served"), BackgroundServer(str(tmp_path)):
        pass


def test_a_file_that_asks_for_all_memory_ends_its_own_process_alone(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["s"], ["big"], value=HUGE),
            helper.make_node("ReduceSum", ["big"], ["t"], keepdims=0),
            helper.make_node("Add", ["x", "t"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("s", TensorProto.INT64, [1], [1 << 42])],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "greedy.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ServingError, match="cannot be served"), BackgroundServer(str(tmp_path)):
        pass


def test_names_that_are_none_are_passed_by(tmp_path: Path) -> None:
    (tmp_path / "good.onnx").write_bytes(LINEAR)
    (tmp_path / "..odd name.onnx").write_bytes(LINEAR)
    with BackgroundServer(str(tmp_path)) as server:
        assert [item["name"] for item in web.post(f"{server.url}/v2/repository/index").json()] == ["good"]


@pytest.mark.parametrize(
    ("seconds", "preferred"),
    [
        ({1: 8e-3, 2: 12e-3, 4: 21e-3, 8: 40e-3, 16: 83e-3, 32: 176e-3}, 8),  # then it leaves the caches
        ({1: 8e-3, 2: 12e-3, 4: 21e-3, 8: 40e-3, 16: 81e-3, 32: 176e-3}, 16),  # a hundredth is no reason
        ({1: 1e-5, 2: 1e-5, 4: 1e-5, 8: 2e-5, 16: 2e-5, 32: 3e-5}, 32),
        ({1: 0.1, 2: 0.2, 4: 0.4}, None),  # it would take long to find out
        ({1: 0.1, 2: 0.1}, None),  # it fails for four rows
    ],
)
def test_the_batch_at_which_a_row_costs_least_is_preferred(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], preferred: int | None
) -> None:
    monkeypatch.setattr(examination, "_cpu_seconds", lambda _, inputs: seconds[len(inputs["x"])])
    backend, specs = OnnxBackend.load(LINEAR, ServingSettings()), GRAPHS["linear"].signature.inputs
    assert examination._preferred(backend, specs, 1, 32) == preferred


def test_a_plain_file_is_tried_with_batches_of_all_sizes(tmp_path: Path) -> None:
    (tmp_path / "linear.onnx").write_bytes(GRAPHS["linear"].model)
    (found,) = find_unproven(str(tmp_path), lambda name: True)
    assert found.manifest.serving.preferred_batch_size in (1, 2, 4, 8, 16, 32)
