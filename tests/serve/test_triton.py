"""Triton's own client for HTTP, unmodified: tensors in JSON, and as bytes, which is what it sends by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import GRAPHS, calls

import shipline
from shipline.serve.description import EXTENSIONS

X = np.array([[1, 2, 3, 4], [0.5, -1, 0, 2]], np.float32)


@pytest.fixture(scope="module")
def found(url: str) -> dict[str, Any]:
    """What every call gave."""
    return calls(Path(__file__).parent / "triton_calls.py", url)


def test_server_and_models_are_ready(found: dict[str, Any]) -> None:
    assert all(found[name] for name in ("live", "ready", "model ready", "version ready"))
    assert not found["stranger ready"]


def test_metadata(found: dict[str, Any]) -> None:
    assert found["server"] == {
        "name": "shipline",
        "version": shipline.__version__,
        "extensions": list(EXTENSIONS),
    }
    assert (found["model"]["name"], found["model"]["versions"]) == ("masked", ["1"])
    assert [spec["datatype"] for spec in found["model"]["inputs"]] == ["INT64", "BOOL"]
    assert found["version"]["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]


def test_infer_without_requested_outputs_gives_them_all(found: dict[str, Any]) -> None:
    expected = GRAPHS["linear"].function({"x": X})["y"]
    for name in ("y", "later"):
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)
    assert found["dtype"] == "float32"
    assert found["kept"] == [[1, 0, 3]]
    assert found["both dropped"] == [[False, True, False]]


def test_infer_with_requested_outputs_gives_those(found: dict[str, Any]) -> None:
    assert found["dropped"] == [[False, True, False]]
    assert found["not asked for"] is None
    assert found["response"]["id"] == "id-7"
    assert (found["response"]["model_name"], found["response"]["model_version"]) == ("masked", "1")


@pytest.mark.parametrize(
    ("case", "status", "message"),
    [
        ("wrong shape", "400", "Input 'x' must have shape [-1, 4]; got [2, 3]."),
        ("wrong datatype", "400", "Input 'x' must be FP32; got 'FP64'."),
        ("wrong name", "400", "Unknown input 'u'; known: x."),
        ("wrong output", "400", "Unknown output 'z'; known: y."),
        ("wrong model", "404", "There is no such model here."),
        ("wrong version", "404", "There is no such version of the model here."),
        ("poison", "500", "The model failed on this input."),
    ],
)
def test_errors_carry_our_message(found: dict[str, Any], case: str, status: str, message: str) -> None:
    assert found[case] == [status, message]


@pytest.mark.parametrize("form", ["binary", "binary output", "binary in, JSON out", "gzip", "deflate"])
def test_tensors_in_their_binary_form_and_packed(found: dict[str, Any], form: str) -> None:
    np.testing.assert_allclose(found[form], GRAPHS["linear"].function({"x": X})["y"], rtol=1e-5)
