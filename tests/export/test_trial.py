"""A file that ends its process is tried in another one first."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from prunable import Attends
from sklearn.datasets import load_digits
from small_modules import record

from shipline.artifact import ServingSettings
from shipline.backends import trial
from shipline.backends.onnx import OnnxBackend
from shipline.errors import GateError
from shipline.export.convert.onnx import to_onnx
from shipline.export.passes.base import Material
from shipline.export.passes.float16 import Float16
from shipline.export.signature import signature_of


@pytest.fixture(scope="module")
def graph() -> tuple[bytes, dict[str, np.ndarray], Material]:
    """A transformer, with its rows."""
    module = Attends()
    rows = record(module, {"x": torch.tensor(load_digits().data[:8] / 16, dtype=torch.float32)})
    signature = signature_of(module, rows)
    return to_onnx(module, rows, signature), rows.inputs, Material(signature, lambda: rows.inputs)


def survive(model: bytes, rows: dict[str, np.ndarray], folder: Path) -> None:
    (file := folder / "model").write_bytes(model)
    trial.survive(file, "onnxruntime", ServingSettings(), rows)


def test_what_runs_survives(graph: Any, tmp_path: Path) -> None:
    survive(graph[0], graph[1], tmp_path)


def test_what_ends_its_process_does_not_end_this_one(graph: Any, tmp_path: Path) -> None:
    """onnxruntime 1.31 does so when it loads this graph; a later one may answer, which is as good."""
    model, rows, material = graph
    half = Float16().apply(model, material)
    said = outcome(half, rows, tmp_path)
    if said is None:
        OnnxBackend.load(half, ServingSettings()).run(rows)
    else:
        assert "onnxruntime cannot be trusted with the graph, so nothing was published: in a process" in said
        assert said.endswith("was ended by SIGSEGV. Set another precision or backend.")


def outcome(model: bytes, rows: dict[str, np.ndarray], folder: Path) -> str | None:
    try:
        survive(model, rows, folder)
    except GateError as error:
        return str(error)
    return None


def test_an_error_is_left_to_who_loads_it_next(graph: Any, tmp_path: Path) -> None:
    survive(b"no graph", graph[1], tmp_path)
    survive(graph[0], {"y": graph[1]["x"]}, tmp_path)


def test_a_trial_that_cannot_take_place_is_said(graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no such module >&2\nexit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(trial.sys, "executable", os.fspath(program))
    with pytest.raises(GateError, match="in a process of its own it ended with 7: no such module"):
        survive(graph[0], graph[1], tmp_path)


def test_what_hangs_is_ended(graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "TIMEOUT_S", 1e-3)
    with pytest.raises(GateError, match=r"took longer than 0\.001 s for one batch"):
        survive(graph[0], graph[1], tmp_path)


def test_the_process_is_named_by_its_signal(graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nkill -{int(signal.SIGILL)} $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(trial.sys, "executable", os.fspath(program))
    with pytest.raises(GateError, match="was ended by SIGILL"):
        survive(graph[0], graph[1], tmp_path)


def test_what_wants_more_memory_than_there_is_gets_none(tmp_path: Path) -> None:
    """A few bytes of ONNX can ask for terabytes."""
    many = helper.make_node("ConstantOfShape", ["shape"], ["many"])
    total = helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0)
    answer = helper.make_node("Add", ["x", "sum"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("x", "y")]
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [1 << 42])
    inner = helper.make_graph([many, total, answer], "bomb", ends[:1], ends[1:], [shape])
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(GateError, match="needed more memory than is free here"):
        survive(model.SerializeToString(), {"x": np.zeros((2, 1), np.float32)}, tmp_path)


@pytest.mark.parametrize(
    ("most", "taken", "free"),
    [("max", 5000, 8192), ("6000", 5000, 1000 + 300), ("999999", 5000, 8192), ("4000", 5000, 0)],
    ids=["no limit", "less", "more", "over"],
)
def test_free_memory_is_that_of_the_container_where_it_has_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: str, taken: int, free: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  99 kB\nMemAvailable:       8 kB\n")
    monkeypatch.setattr(trial, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(trial, "GROUP", tmp_path)
    assert trial.free_memory() == 8192
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text(f"{taken}\n")
    (tmp_path / "memory.stat").write_text("anon 4000\nactive_file 100\ninactive_file 200\n")
    assert trial.free_memory() == free
