"""Eight bits where they cost little: a sweep finds the nodes that suffer, and they stay float."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sklearn.datasets import load_digits
from small_modules import record
from torch import nn

import shipline as sl
from shipline.artifact import ServingSettings
from shipline.errors import ConfigError, GateError
from shipline.export.convert.onnx import to_onnx
from shipline.export.passes.base import Material
from shipline.export.passes.mixed_int8 import MixedInt8
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.runtime import Runtime
from shipline.export.signature import signature_of
from shipline.train import Run

LOUD = 2000.0


class OneIsLoud(nn.Module):
    """Products of digits, before the second of which one channel is so loud that 8 bits leave little of the others."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)])
        with torch.no_grad():
            self.layers[0].weight[0] *= LOUD  # type: ignore[index, operator]
            self.layers[1].weight[:, 0] /= LOUD  # type: ignore[index, operator]

    def forward(self, x: torch.Tensor) -> Any:
        for layer in self.layers:
            x = torch.tanh(layer(x)) if layer is not self.layers[0] else layer(x)
        return x


@pytest.fixture(scope="module")
def case() -> tuple[bytes, Material, dict[str, np.ndarray]]:
    """The graph, what a pass may look at, and other rows than those."""
    module = OneIsLoud()
    scans = torch.tensor(load_digits().data[:256] / 16, dtype=torch.float32)
    rows = record(module, {"x": scans[:128]})
    signature = signature_of(module, rows)
    return to_onnx(module, rows, signature), Material(signature, lambda: rows.inputs), {"x": scans[128:].numpy()}


def error(model: bytes, plain: bytes, rows: dict[str, np.ndarray]) -> float:
    one, other = (Runtime(each, ServingSettings()).run(rows)[0] for each in (plain, model))
    return float(np.linalg.norm(one - other) / np.linalg.norm(one))


def int8_weights(model: bytes) -> int:
    tensors = onnx.load_from_string(model).graph.initializer
    return sum(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2 for tensor in tensors)


def test_the_node_that_suffers_stays_float(case: tuple[bytes, Material, Any]) -> None:
    model, material, others = case
    mixed = MixedInt8().apply(model, material)
    everything = StaticInt8(op_types=("Gemm", "MatMul")).apply(model, material)
    assert (int8_weights(everything), int8_weights(mixed)) == (4, 3)
    assert error(mixed, model, others) < 0.1 < error(everything, model, others)


def test_what_the_sweep_found_is_noted(case: tuple[bytes, Material, Any]) -> None:
    model, material, _ = case
    MixedInt8().apply(model, material)
    first, *rest = material.notes["sensitivity"]
    nodes = [node.name for node in onnx.load_from_string(model).graph.node if node.op_type in ("Gemm", "MatMul")]
    assert first["node"] == nodes[1]
    assert first["float"]
    assert first["error"] > 3 * rest[0]["error"] > 0
    assert [each["float"] for each in rest] == [False] * 3


def test_where_all_are_near_enough_none_stays_float(case: tuple[bytes, Material, Any]) -> None:
    model, material, _ = case
    assert int8_weights(MixedInt8(near=1.0).apply(model, material)) == 4


def test_what_comes_never_near_enough_is_refused(case: tuple[bytes, Material, Any]) -> None:
    model, material, _ = case
    with pytest.raises(GateError, match="with 2 of 4 nodes left float, answers to calibration rows still differ by"):
        MixedInt8(near=1e-6).apply(model, material)


@pytest.mark.parametrize("settings", [{"near": 0.0}, {"near": True}, {"most_float": 1.5}, {"calibration": "mean"}])
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"has {next(iter(settings))}="):
        MixedInt8(**settings)


def test_the_report_shows_the_sweep(trained: Run, tmp_path: Path) -> None:
    recipe = {"precision": "int8-mixed", "min_speedup": 0.0, "max_metric_drop": 0.05}
    artifact = sl.export(trained, recipe, to=str(tmp_path / "m"))
    [chosen] = [each for each in json.loads(artifact.read("report.json"))["candidates"] if each["chosen"]]
    found = chosen["notes"]["sensitivity"]
    assert {each["op_type"] for each in found} <= {"Gemm", "MatMul"}
    page = artifact.read("report.html").decode()
    assert all(each["node"] in page for each in found)


class Table(nn.Module):
    """Rows of a large table, then a product."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.table, self.out = nn.Embedding(2048, 64), nn.Linear(64, 10)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.out(torch.tanh(self.table(words).mean(1)))
        return found


def test_large_tables_of_embeddings_are_small_too() -> None:
    module, words = Table(), torch.arange(128 * 16).reshape(128, 16)
    rows = record(module, {"words": words})
    signature = signature_of(module, rows)
    plain = to_onnx(module, rows, signature)
    made = MixedInt8().apply(plain, Material(signature, lambda: rows.inputs))
    assert len(made) < 0.3 * len(plain)
    assert error(made, plain, {"words": words.flip(0).numpy()}) < 0.02
    table = {tensor.name: tensor for tensor in onnx.load_from_string(made).graph.initializer}
    assert max(table.values(), key=lambda tensor: tensor.ByteSize()).data_type == onnx.TensorProto.INT8
