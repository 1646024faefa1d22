"""Each pass: what all of them do, and what is its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from onnx import helper
from pass_conformance import PassConformance
from sklearn.datasets import load_digits
from small_modules import Tiny, record
from torch import nn

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.errors import ConfigError, GateError
from shipline.export import gates, processor
from shipline.export.convert.onnx import to_onnx
from shipline.export.passes.base import GraphPass, Material
from shipline.export.passes.dynamic_int8 import DynamicInt8
from shipline.export.passes.float16 import Float16
from shipline.export.passes.mixed_int8 import MixedInt8
from shipline.export.passes.smooth_quant import SmoothQuant
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.passes.weights_int4 import WeightsInt4
from shipline.export.passes.weights_int8 import WeightsInt8
from shipline.export.plan import plan
from shipline.export.rows import Rows
from shipline.export.runtime import Runtime
from shipline.export.signature import signature_of
from shipline.signature import Signature, TensorSpec


class Convolutions(nn.Module):
    """An image -> ten numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x.unflatten(1, (1, 8, 8)))


class Products(nn.Module):
    """Matrix products alone, which every pass knows."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 10))

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x[:, None]).squeeze(1)


def recorded(kind: type[nn.Module]) -> tuple[nn.Module, Rows]:
    """The module, the same every time, and scans of digits that went through it."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = kind()
    scans = torch.tensor(load_digits().data[:128] / 16, dtype=torch.float32)
    return module, record(module, {"x": scans})


def graph_of(kind: type[nn.Module]) -> tuple[bytes, Material]:
    module, rows = recorded(kind)
    signature = signature_of(module, rows)
    return to_onnx(module, rows, signature), Material(signature, lambda: rows.inputs)


@pytest.fixture(scope="module", params=[Products, Convolutions])
def case(request: pytest.FixtureRequest) -> tuple[bytes, Material]:
    return graph_of(request.param)


class TestOnEveryGraph(PassConformance):
    """Those that take any graph with weights."""

    @pytest.fixture
    def case(self, case: tuple[bytes, Material]) -> tuple[bytes, Material]:
        return case

    @pytest.fixture(params=[StaticInt8, MixedInt8, DynamicInt8, Float16, WeightsInt8])
    def made(self, request: pytest.FixtureRequest) -> GraphPass:
        made: GraphPass = request.param()
        return made


class TestWeightsInt4(PassConformance):
    @pytest.fixture
    def case(self) -> tuple[bytes, Material]:
        return graph_of(Products)

    @pytest.fixture
    def made(self) -> GraphPass:
        return WeightsInt4()


def test_every_pass_of_a_graph_that_has_a_name_is_tested() -> None:
    classes = {plugins.load("pass", name) for name in plugins.known("pass")}
    assert {each for each in classes if issubclass(each, GraphPass)} == {
        StaticInt8,
        MixedInt8,
        DynamicInt8,
        Float16,
        SmoothQuant,  # in test_smooth_quant.py
        WeightsInt4,
        WeightsInt8,
    }


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_scales_can_be_chosen_in_three_ways(method: Any) -> None:
    model, material = graph_of(Products)
    small = StaticInt8(calibration=method).apply(model, material)
    assert len(small) < 0.4 * len(model)


def test_nodes_and_operators_can_stay_float() -> None:
    model, material = graph_of(Convolutions)
    names = [node.name for node in onnx.load_from_string(model).graph.node if node.op_type == "Conv"]

    def quantised(made: StaticInt8) -> list[int]:
        graph = onnx.load_from_string(made.apply(model, material)).graph
        return sorted(
            len(tensor.dims)
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
        )

    assert quantised(StaticInt8()) == [2, 2, 4, 4]
    assert quantised(StaticInt8(op_types=("Conv",))) == [4, 4]
    assert quantised(StaticInt8(keep_float=tuple(names))) == [2, 2]


@pytest.mark.parametrize(("precision", "scales"), [("int8", {10, 64}), ("int8-tensor", {1})])
def test_a_weight_has_a_scale_for_each_channel_or_one(precision: str, scales: set[int]) -> None:
    model, material = graph_of(Tiny)
    [made] = plan(precision, "onnxruntime").passes
    graph = onnx.load_from_string(made.apply(model, material)).graph
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    weights = [node for node in pairs if node.input[0] in tensors and tensors[node.input[0]].ndim == 2]
    assert len(weights) == 2
    assert {tensors[node.input[1]].size for node in weights} == scales


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StaticInt8(calibration="mean"), "calibration='mean'; choose one of minmax, entropy, percentile"),
        (lambda: WeightsInt4(block_size=7), "block_size=7; it is 16, 32"),
        (lambda: WeightsInt8(least=0), "least=0; set a whole number from 1 on"),
    ],
)
def test_settings_that_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize(
    ("made", "said"),
    [(WeightsInt4(), "no product with a matrix of weights"), (WeightsInt8(), "no weights of 1024 numbers or more")],
)
def test_a_graph_without_weights_is_refused(made: GraphPass, said: str) -> None:
    class Adds(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return x + 1

    with pytest.raises(GateError, match=f"weights, so nothing was published: .* {said}"):
        made.apply(*graph_of(Adds))


class Embeds(nn.Module):
    """An embedding, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(17, 64), nn.Embedding(64, 64)

    def forward(self, x: torch.Tensor) -> Any:
        ids = (x * 16).long()
        found = self.words(ids) + self.places(ids) + self.places(ids + 1)
        return found.mean(1)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_embeddings_are_small_too_and_shared_weights_stay(backend: str) -> None:
    model, material = graph_of(Embeds)
    small = WeightsInt8().apply(model, material)
    graph = onnx.load_from_string(small).graph
    onnx.checker.check_model(onnx.load_from_string(small), full_check=True)
    assert [list(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8] == [[17, 64]]
    rows = material.calibration()
    before, after = (Runtime(each, ServingSettings(), backend).run(rows)[0] for each in (model, small))
    assert np.abs(before - after).max() < 0.02 * np.abs(before).max()


def test_weights_that_a_branch_uses_too_stay_as_they_are() -> None:
    """The branch would look for them in vain."""
    value, node, kind = helper.make_tensor_value_info, helper.make_node, onnx.TensorProto.FLOAT
    branches = {
        f"{name}_branch": helper.make_graph([node("MatMul", ["x", "w"], [name])], name, [], [value(name, kind, None)])
        for name in ("then", "else")
    }
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["x", "v"], ["b"]),
        node("If", ["yes"], ["c"], **branches),
        node("Sum", ["a", "b", "c"], ["y"]),
    ]
    constants = {"w": np.ones((32, 32), np.float32), "v": np.eye(32, dtype=np.float32), "yes": np.array(True)}
    graph = helper.make_graph(
        nodes, "g", [value("x", kind, ["n", 32])], [value("y", kind, ["n", 32])],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 32)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 32)),),
    )
    rows = {"x": np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)}
    small = WeightsInt8().apply(model, Material(signature, lambda: rows))
    assert {tensor.name for tensor in onnx.load_from_string(small).graph.initializer} == {
        "w",
        "v_int8",
        "v_scale",
        "yes",
    }
    before, after = (Runtime(each, ServingSettings()).run(rows)[0] for each in (model, small))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


def test_dynamic_int8_answers_a_row_by_its_company_and_the_gate_measures_it() -> None:
    """Why it is offered at all only behind the gate: one bright row changes the scale of all others."""
    module, rows = recorded(Products)
    signature = signature_of(module, rows)
    small = DynamicInt8().apply(to_onnx(module, rows, signature), Material(signature, lambda: rows.inputs))
    verdict = gates.batch_invariance(Runtime(small, ServingSettings()), rows, signature, 32, 1e-4)
    assert not verdict.passed
    assert verdict.measured is not None
    assert 1e-4 < verdict.measured < 0.1
    assert "a row's answer alone and among others differs by 0.0" in verdict.message


def test_static_int8_does_not() -> None:
    module, rows = recorded(Products)
    signature = signature_of(module, rows)
    small = StaticInt8().apply(to_onnx(module, rows, signature), Material(signature, lambda: rows.inputs))
    verdict = gates.batch_invariance(Runtime(small, ServingSettings()), rows, signature, 32, 1e-4)
    assert verdict.passed
    assert verdict.measured == 0


@pytest.mark.parametrize(
    ("machine", "flags", "cuts"),
    [
        ("x86_64", "fpu avx avx2 fma", True),
        ("x86_64", "fpu avx2 avx512_vnni", False),
        ("AMD64", "avx_vnni", False),
        ("x86_64", "amx_int8 amx_tile", False),
        ("x86_64", None, True),
        ("arm64", None, False),
    ],
)
def test_which_processors_cut_sums(
    machine: str, flags: str | None, cuts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor: 0\nflags: {flags}\n")
    monkeypatch.setattr(processor, "CPUINFO", file)
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    assert processor.cuts_sums.__wrapped__() is cuts


@pytest.mark.parametrize("kind", [StaticInt8, DynamicInt8])
def test_weights_have_as_many_bits_as_the_processor_can_add(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, material = graph_of(Products)

    def largest(made: GraphPass) -> int:
        graph = onnx.load_from_string(made.apply(model, material)).graph
        return max(
            int(np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max())
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
        )

    for cuts, bits in ((True, 64), (False, 127)):
        monkeypatch.setattr(sys.modules[kind.__module__], "cuts_sums", lambda answer=cuts: answer)
        assert largest(kind()) == pytest.approx(bits, abs=1)
    assert largest(kind(reduce_range=True)) == pytest.approx(64, abs=1)
