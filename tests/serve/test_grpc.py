"""Triton's own gRPC clients, unmodified, synchronous and asynchronous; and that the protocol's numbers are theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc_calls import X, calling, infer_request
from serving import ANYBODY, GRAPHS, calls, publish_all, web

import shipline
from shipline.serve.description import EXTENSIONS
from shipline.serve.server import BackgroundServer

Y = GRAPHS["linear"].function({"x": X})["y"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundServer]:
    """A server with every kind of model."""
    repository = tmp_path_factory.mktemp("repository")
    publish_all(repository)
    with BackgroundServer(str(repository), grpc_port=0, settings=ANYBODY) as server:
        yield server


@pytest.fixture(scope="module")
def found(server: BackgroundServer) -> dict[str, Any]:
    """What every call gave."""
    return calls(Path(__file__).parent / "triton_grpc_calls.py", str(server.grpc_address))


def test_server_and_models_are_ready(found: dict[str, Any]) -> None:
    assert all(found[name] for name in ("live", "ready", "model ready", "version ready"))
    assert not found["stranger ready"]
    assert not found["other version ready"]
    assert found["asynchronously"]["ready"]


def test_metadata_and_configuration(found: dict[str, Any]) -> None:
    assert found["server"] == {"name": "shipline", "version": shipline.__version__, "extensions": list(EXTENSIONS)}
    assert (found["model"]["name"], found["model"]["versions"]) == ("masked", ["1"])
    assert found["model"]["platform"] == "onnxruntime_onnx"
    assert found["model"]["inputs"] == [
        {"name": "ids", "datatype": "INT64", "shape": ["-1", "3"]},
        {"name": "keep", "datatype": "BOOL", "shape": ["-1", "3"]},
    ]
    config = found["config"]
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("masked", "onnxruntime", 8)
    assert config["input"][1] == {"name": "keep", "data_type": "TYPE_BOOL", "dims": ["3"]}
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["dynamic_batching"] == {"preferred_batch_size": [8]}


def test_statistics(found: dict[str, Any]) -> None:
    (masked,) = found["statistics"]
    assert (masked["name"], masked["version"]) == ("masked", "1")
    assert masked["inference_stats"]["success"]["count"] == "2"
    assert int(masked["inference_stats"]["compute_infer"]["ns"]) > 0
    assert found["all statistics"] == ["linear", "logarithm", "lookup", "masked", "picture", "table", "total"]


def test_a_model_is_unloaded_and_loaded(found: dict[str, Any]) -> None:
    assert found["moved"] == {
        "before": ["READY", ""],
        "unloaded": ["UNAVAILABLE", "unloaded"],
        "ready": False,
        "after": ["READY", ""],
    }


@pytest.mark.parametrize("way", ["y", "packed", "in time", "later"])
def test_infer(found: dict[str, Any], way: str) -> None:
    np.testing.assert_allclose(found[way], Y, rtol=1e-5)


def test_infer_of_other_models_and_datatypes(found: dict[str, Any]) -> None:
    assert found["kept"] == [[1, 0, 3]]
    assert found["both dropped"] == [[False, True, False]]
    expected = GRAPHS["lookup"].function({"index": np.array([3, 0])})["row"]
    np.testing.assert_allclose(found["row"], expected, rtol=1e-6)
    assert found["total"] == [[10.0], [1.5]]


def test_requested_outputs_and_the_id(found: dict[str, Any]) -> None:
    assert found["dropped"] == [[False, True, False]]
    assert found["not asked for"] is None
    assert found["id"] == "id-7"
    assert found["from"] == ["masked", "1"]


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("shape", "INVALID_ARGUMENT", "Input 'x' must have shape [-1, 4]; got [2, 3]."),
        ("datatype", "INVALID_ARGUMENT", "Input 'x' must be FP32; got 'FP64'."),
        ("name", "INVALID_ARGUMENT", "Unknown input 'u'; known: x."),
        ("output", "INVALID_ARGUMENT", "Unknown output 'z'; known: y."),
        (
            "classes",
            "INVALID_ARGUMENT",
            "an output has the parameter 'classification', which this server does not have.",
        ),
        ("model", "NOT_FOUND", "There is no such model here."),
        ("version", "NOT_FOUND", "There is no such version of the model here."),
        ("poison", "INTERNAL", "The model failed on this input."),
        ("metadata", "NOT_FOUND", "There is no such model here."),
        ("config", "NOT_FOUND", "There is no such model here."),
        ("statistics", "NOT_FOUND", "There is no such model here."),
        ("load", "NOT_FOUND", "There is no such model here."),
        ("unload", "NOT_FOUND", "There is no such model here."),
        ("files", "INVALID_ARGUMENT", "'config' cannot be set here."),
        ("shared memory", "UNIMPLEMENTED", "Method not found!"),
    ],
)
def test_errors_carry_code_and_message(found: dict[str, Any], case: str, code: str, message: str) -> None:
    assert found[f"refused: {case}"] == [f"StatusCode.{code}", message]


def test_a_stream_is_answered_in_order_and_goes_on_after_an_error(found: dict[str, Any]) -> None:
    assert len(found["streamed"]) == 20
    for number, answer in enumerate(found["streamed"]):
        if number == 4:
            assert answer == "There is no such model here."
        else:
            assert answer[0] == str(number)
            expected = GRAPHS["linear"].function({"x": X * number})["y"]
            np.testing.assert_allclose(answer[1], expected, rtol=1e-4, atol=1e-5)


def test_the_asynchronous_client(found: dict[str, Any]) -> None:
    """Sixty-four calls at once, and a stream."""
    for name, count in (("y", 64), ("streamed", 3)):
        answers = found["asynchronously"][name]
        assert len(answers) == count
        for number, answer in enumerate(answers):
            expected = GRAPHS["linear"].function({"x": X * number})["y"]
            np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_messages_and_methods_have_the_names_and_numbers_of_tritons(found: dict[str, Any]) -> None:
    numbers = found["numbers"]
    assert {"ModelInferRequest", "ModelInferRequest.InferInputTensor", "ModelConfig", "methods"} <= numbers.keys()
    assert len(numbers["methods"][0]) == 12
    for name, (ours, theirs) in numbers.items():
        assert ours == theirs, name


def test_calls_are_counted(server: BackgroundServer) -> None:
    with calling(server.grpc_address) as caller:
        caller.infer(infer_request("table", x=X))
    text = web.get(f"{server.url}/metrics").text
    assert 'shipline_requests_total{endpoint="grpc",model="table",status="200",version="1"} 1.0' in text
