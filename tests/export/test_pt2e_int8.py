"""torchao's own int8: a program of torch that is rounded, and then goes the way of any module."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from module_pass_conformance import recorded, same_weights, seeded
from prunable import Attends, Residual
from small_modules import Tiny
from torch import nn

import shipline as sl
from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.errors import GateError
from shipline.export import gates
from shipline.export.convert.onnx import to_onnx
from shipline.export.passes import pt2e_int8
from shipline.export.passes.base import Material
from shipline.export.passes.pt2e_int8 import Pt2eInt8
from shipline.export.plan import plan, searched
from shipline.export.runtime import Runtime
from shipline.export.signature import signature_of
from shipline.train import Run


def material_of(module: nn.Module) -> Material:
    rows = recorded(module)
    return Material(signature_of(module, rows), lambda: rows.inputs)


@pytest.fixture(scope="module", params=[Tiny, Residual, Attends])
def made(request: pytest.FixtureRequest) -> tuple[Tiny, nn.Module, Material]:
    """A module, what became of it, and its rows."""
    module = seeded(request.param)
    material = material_of(module)
    return module, Pt2eInt8().apply(module, material), material


def test_it_is_found_by_its_name_and_not_searched() -> None:
    assert plugins.load("pass", "pt2e-int8") is Pt2eInt8
    assert not any(each.module_passes for each in searched(None))


def test_the_graph_has_int8_weights_and_uint8_activations(made: tuple[Tiny, nn.Module, Material]) -> None:
    """Activations in int8 would be many times slower on onnxruntime."""
    before, after, material = made
    model = to_onnx(after, recorded(after), material.signature)
    assert len(model) < 0.7 * len(to_onnx(before, recorded(before), material.signature))
    graph = onnx.load_from_string(model).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    zeros = [tensors[node.input[2]].data_type for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert set(zeros) == {onnx.TensorProto.UINT8}
    whole = [tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    assert any(len(tensor.dims) > 1 for tensor in whole)


def test_the_graph_answers_as_the_rounded_program_and_that_about_as_the_module(
    made: tuple[Tiny, nn.Module, Material],
) -> None:
    before, after, material = made
    rows, whole, signature = recorded(after), recorded(before), material.signature
    runtime = Runtime(to_onnx(after, rows, signature), ServingSettings())
    for expected in (rows, whole):
        verdict, _ = gates.parity(runtime, expected, signature, 32, Pt2eInt8.tolerance)
        assert verdict.passed, verdict
    assert gates.batch_invariance(runtime, rows, signature, 32, 1e-4).passed


def test_the_module_stays_and_what_came_of_it_evaluates(made: tuple[Tiny, nn.Module, Material]) -> None:
    before, after, material = made
    assert "forward" not in vars(before)
    assert inspect.signature(after.forward) == inspect.signature(before.forward)
    same_weights(seeded(type(before)), before.state_dict())
    x = torch.from_numpy(material.calibration()["x"])
    with torch.no_grad():
        expected = after(x)
        assert torch.equal(after(x=x), expected)
        assert torch.equal(after.train()(x), expected)
    after.eval()
    assert not any(part.training for part in after.modules())


def test_the_same_module_and_rows_give_the_same() -> None:
    first, second = (
        to_onnx(after, recorded(after), material_of(after).signature)
        for after in (Pt2eInt8().apply(module, material_of(module)) for module in (seeded(Residual), seeded(Residual)))
    )
    assert first == second


@pytest.mark.parametrize(("given", "cuts", "largest"), [(None, True, 127), (None, False, 255), (False, True, 255)])
def test_activations_have_as_many_bits_as_the_processor_can_add(
    given: bool | None, cuts: bool, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pt2e_int8, "cuts_sums", lambda: cuts)
    module = seeded(Tiny)
    after = Pt2eInt8(reduce_range=given).apply(module, material_of(module))
    program = next(part for part in after.modules() if isinstance(part, torch.fx.GraphModule))
    rounding = [node for node in program.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert {node.args[4] for node in rounding} == {largest}


class Pools(Tiny):
    """With a layer whose answer nobody takes, as BERT's pooler where the mean is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.pooler = nn.Sequential(nn.Linear(64, 64), nn.Tanh())

    def forward(self, x: torch.Tensor) -> Any:
        self.pooler(x)
        return self.net(x)


def test_a_layer_that_nobody_takes_is_left_out() -> None:
    module = seeded(Pools)
    material = material_of(module)
    after = Pt2eInt8().apply(module, material)
    runtime = Runtime(to_onnx(after, recorded(after), material.signature), ServingSettings())
    assert gates.parity(runtime, recorded(module), material.signature, 32, Pt2eInt8.tolerance)[0].passed


class Averages(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.LayerNorm(64)


class Decides(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("kind", "why"), [(Averages, "it has no linear layer or convolution that"), (Decides, r"\w+: ")]
)
def test_what_torchao_cannot_round_is_refused(kind: type[Tiny], why: str) -> None:
    module = seeded(kind)
    with pytest.raises(GateError, match=f"{kind.__name__} cannot be quantised by torchao, so nothing was .*: {why}"):
        Pt2eInt8().apply(module, material_of(module))


def test_the_plan_is_int8_but_where_a_graph_goes_further() -> None:
    found = plan("float32", "onnxruntime", (Pt2eInt8(),))
    assert (found.precision, str(found), found.tolerance) == ("int8", "pt2e int8 on onnxruntime", 5e-2)
    assert found.without_passes().precision == "float32"


def test_it_is_published_with_the_metric_of_the_trained_module(trained: Run, tmp_path: Path) -> None:
    recipe = sl.Recipe(passes=(Pt2eInt8(),), min_speedup=0.0, max_metric_drop=0.05)
    artifact = sl.export(trained, recipe, to=str(tmp_path / "m"))
    assert artifact.manifest.precision == "int8"
    assert {"parity", "metric", "size"} <= {verdict.gate for verdict in artifact.manifest.verdicts}
    [chosen] = [each for each in json.loads(artifact.read("report.json"))["candidates"] if each["chosen"]]
    assert chosen["name"] == "pt2e int8 on onnxruntime"
    assert np.isfinite(artifact.manifest.metrics["val_acc"])
