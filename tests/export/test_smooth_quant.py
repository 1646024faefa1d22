"""Loud channels made quieter: the answers stay, and 8 bits lose less of them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from module_pass_conformance import recorded, seeded
from pass_conformance import PassConformance
from prunable import Attends, Bert
from sklearn.datasets import load_digits
from small_modules import Tiny
from torch import nn

import shipline as sl
from shipline.artifact import ServingSettings
from shipline.errors import ConfigError, GateError
from shipline.export import processor
from shipline.export.convert.onnx import to_onnx
from shipline.export.passes.base import GraphPass, Material
from shipline.export.passes.smooth_quant import SmoothQuant
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.plan import plan, searched
from shipline.export.runtime import Runtime
from shipline.export.signature import signature_of

LOUD = 100.0


class Normed(Tiny):
    """Products after a norm of which two channels are loud, and the second layer after an activation function."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm(64)
        self.net = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 10))
        with torch.no_grad():
            self.norm.weight[[9, 42]] = LOUD  # type: ignore[index]
            self.net[0].weight[:, [9, 42]] /= LOUD  # type: ignore[index]

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(self.norm(x))


class Shared(Normed):
    """The same, of which something else takes what the norm gives, and two products share it."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(64, 10, bias=False)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.norm(x)
        return self.net(x) + self.other(x) + x[:, :10].tanh()


class Rms(Normed):
    def __init__(self) -> None:
        super().__init__(nn.RMSNorm)


@cache
def graph_of(kind: type[Tiny]) -> tuple[bytes, Material]:
    module = seeded(kind)
    rows = recorded(module)
    signature = signature_of(module, rows)
    return to_onnx(module, rows, signature), Material(signature, lambda: rows.inputs)


def answers(model: bytes, rows: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(Runtime(model, ServingSettings()).run(rows)[0])


def operators(model: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)


class TestSmoothQuant(PassConformance):
    @pytest.fixture(params=[Normed, Shared, Rms, Attends, Bert])
    def case(self, request: pytest.FixtureRequest) -> tuple[bytes, Material]:
        return graph_of(request.param)

    @pytest.fixture(params=[False, True])
    def made(self, request: pytest.FixtureRequest) -> GraphPass:
        return SmoothQuant(everywhere=request.param)


@pytest.mark.parametrize("kind", [Normed, Shared, Rms, Attends, Bert])
@pytest.mark.parametrize("everywhere", [False, True])
def test_the_answers_stay(kind: type[Tiny], everywhere: bool) -> None:
    model, material = graph_of(kind)
    smooth = SmoothQuant(everywhere=everywhere).apply(model, material)
    onnx.checker.check_model(onnx.load_from_string(smooth), full_check=True)
    rows = {"x": load_digits().data[900:1100].astype(np.float32) / 16}
    before, after = answers(model, rows), answers(smooth, rows)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


@pytest.mark.parametrize(("kind", "added"), [(Normed, 0), (Rms, 0), (Attends, 0), (Shared, 1), (Bert, 4)])
def test_scales_go_into_the_norm_where_nobody_else_takes_it(kind: type[Tiny], added: int) -> None:
    """Norms first in Attends; in Bert the sums take norms, too: one multiplication for all products of each."""
    model, material = graph_of(kind)
    smooth = SmoothQuant().apply(model, material)
    assert operators(smooth) - operators(model) == Counter({"Mul": added} if added else {})
    graph = onnx.load_from_string(smooth).graph
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}


@pytest.mark.parametrize("kind", [Normed, Shared, Rms])
def test_eight_bits_lose_less(kind: type[Tiny]) -> None:
    model, material = graph_of(kind)
    rows = {"x": load_digits().data[900:1100].astype(np.float32) / 16}
    whole, lost = answers(model, rows), []
    for graph in (model, SmoothQuant().apply(model, material)):
        small = StaticInt8(op_types=("MatMul", "Gemm")).apply(graph, material)
        lost.append(float(np.linalg.norm(answers(small, rows) - whole) / np.linalg.norm(whole)))
    assert lost[1] < 0.6 * lost[0]
    assert lost[1] < 0.05


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_alpha_says_who_is_loud(alpha: float) -> None:
    """The largest of a channel, and of the weights that take it: one of them is 1, or both are alike."""
    model, material = graph_of(Normed)
    graph = onnx.load_from_string(SmoothQuant(alpha=alpha).apply(model, material)).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    norm = next(node for node in graph.node if node.op_type == "LayerNormalization")
    product = next(node for node in graph.node if norm.output[0] in node.input)
    weights = np.abs(tensors[product.input[1]]).max(axis=0 if product.op_type == "Gemm" else 1)
    graph.output.append(onnx.helper.make_empty_tensor_value_info(norm.output[0]))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = np.abs(session.run(None, material.calibration())[-1]).max(axis=0)
    expected = {0.0: (given, weights * given), 0.5: (given, weights), 1.0: (given, np.ones(64))}[alpha]
    np.testing.assert_allclose(*expected, rtol=1e-4)


class Silent(Normed):
    """A channel that is always zero, and one that no weight takes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.norm.weight[3] = self.norm.bias[3] = 0  # type: ignore[index, operator]
            self.net[0].weight[:, 5] = 0  # type: ignore[index]


def test_silent_channels_stay_as_they_are() -> None:
    model, material = graph_of(Silent)
    smooth = SmoothQuant().apply(model, material)
    found = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(smooth).graph.initializer]
    assert all(np.isfinite(array).all() for array in found)
    rows = material.calibration()
    np.testing.assert_allclose(answers(smooth, rows), answers(model, rows), rtol=1e-4, atol=1e-5)


def test_a_graph_without_norms_is_refused() -> None:
    with pytest.raises(GateError, match=r"made smooth, so nothing .*: no product with weights takes what a norm gives"):
        SmoothQuant().apply(*graph_of(Tiny))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, True, "half"])
def test_settings_that_are_refused(alpha: Any) -> None:
    with pytest.raises(ConfigError, match=r"SmoothQuant has alpha=.*; set a number from 0 to 1"):
        SmoothQuant(alpha=alpha)


def test_the_precision_is_smoothing_and_then_mixed_int8() -> None:
    found = plan("int8-smooth", "openvino")
    assert [type(each).__name__ for each in found.passes] == ["SmoothQuant", "MixedInt8"]
    assert found.tolerance == 0.2
    assert {each.backend for each in searched(None) if each.precision == "int8-smooth"} == {"onnxruntime", "openvino"}


@pytest.mark.parametrize("precision", ["int8-mixed", "int8-smooth"])
def test_what_stays_float_may_be_computed_in_bfloat16(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: True)
    [found] = [each for each in searched(None) if each.precision == f"{precision}-bfloat16"]
    assert found.backend == "openvino"
    assert found.serving(8).compute == "bfloat16"
    assert found.passes == plan(precision, "openvino").passes
    assert plan(precision, "openvino").serving(8).compute == "float32"
    monkeypatch.setattr(processor, "computes_bfloat16", lambda: False)
    assert f"{precision}-bfloat16" not in {each.precision for each in searched(None)}


def test_it_is_published(tmp_path: Path) -> None:
    rows = torch.tensor(load_digits().data[:200] / 16, dtype=torch.float32)
    recipe = sl.Recipe(precision="int8-smooth", min_speedup=0.0, max_metric_drop=0.05)
    artifact = sl.export(seeded(Normed), recipe, rows=(rows,), to=str(tmp_path / "m"))
    assert artifact.manifest.precision == "int8-smooth"
    assert artifact.manifest.metrics["fidelity"] > 0.98
