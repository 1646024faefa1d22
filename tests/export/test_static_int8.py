"""Eight bits: what the graph looks like, and what stays as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from sklearn.datasets import load_digits
from small_modules import record
from torch import nn

from shipline.artifact import ServingSettings
from shipline.export.convert.onnx import to_onnx
from shipline.export.passes.base import Material
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.rows import Rows
from shipline.export.runtime import Runtime
from shipline.export.signature import signature_of
from shipline.signature import Signature

Tensor = torch.Tensor


class Net(nn.Module):
    """A convolution and a linear layer, the same every time."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 6, 3)
            self.line = nn.Linear(6 * 4, 5)
            self.words = nn.Embedding(64, 8)

    def forward(self, x: Tensor) -> Any:
        return self.line(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().flatten(1)


class Logits(Net):
    pass


class EndsInRelu(Net):
    """The quantiser drops a Relu before a QDQ pair, which clips at 0, too."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x).relu()


class EndsInClip(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).clamp(0.0, 0.5)


class EndsInSoftmax(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).softmax(1)


class Several(Net):
    """One output goes on inside the graph."""

    def forward(self, x: Tensor) -> Any:
        hidden = self.hidden(x)
        out = self.line(hidden)
        return {"hidden": hidden, "logits": out, "scores": out.softmax(1), "best": out.argmax(1)}


class Words(Net):
    def forward(self, ids: Tensor, x: Tensor) -> Any:
        return self.words(ids).mean(1)[:, :5] + super().forward(x)


def batch(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def inputs_of(module: Net, rows: int, seed: int = 0) -> dict[str, Tensor]:
    x = batch(rows, seed)
    return {"ids": (x.flatten(1)[:, :6] * 64).long(), "x": x} if isinstance(module, Words) else {"x": x}


def quantised(module: Net) -> tuple[bytes, Rows, Signature]:
    rows = record(module, inputs_of(module, 64))
    signature = signature_of(module, rows)
    material = Material(signature, lambda: rows.inputs)
    return StaticInt8().apply(to_onnx(module, rows, signature), material), rows, signature


KINDS = [Logits, EndsInRelu, EndsInClip, EndsInSoftmax, Several, Words]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_stay_close_and_keep_names_dtypes_and_order(kind: type[Net]) -> None:
    module = kind()
    model, _, signature = quantised(module)
    runtime = Runtime(model, ServingSettings())
    given = {name: tensor[:33] for name, tensor in inputs_of(module, 64).items()}
    found = runtime.run({name: tensor.numpy() for name, tensor in given.items()})
    with torch.no_grad():
        answer = module(**given)
    expected = list(answer.values()) if isinstance(answer, dict) else [answer]
    assert [output.name for output in onnx.load_from_string(model).graph.output] == [s.name for s in signature.outputs]
    for spec, one, other in zip(signature.outputs, found, expected, strict=True):
        assert one.dtype.name == spec.dtype
        if spec.dtype == "float32":
            assert np.abs(one - other.numpy()).max() <= 0.05 * other.abs().max(), spec.name
        else:
            assert np.mean(one == other.numpy()) > 0.9


@pytest.mark.parametrize("kind", [Logits, EndsInRelu, EndsInSoftmax, Words])
def test_answers_are_floats_and_no_multiples_of_a_scale(kind: type[Net]) -> None:
    """A last QDQ pair would clip answers beyond the calibrated range and leave 256 different ones."""
    graph = onnx.load_from_string(quantised(kind())[0]).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    assert {makers[output.name] for output in graph.output}.isdisjoint({"DequantizeLinear", "QuantizeLinear"})


@pytest.mark.parametrize("kind", [Logits, EndsInRelu])
def test_answers_beyond_the_calibrated_range_are_not_clipped(kind: type[Net]) -> None:
    module = kind()
    with torch.no_grad():
        module.line.weight.abs_()
    rows = record(module, {"x": batch(64)})
    signature = signature_of(module, rows)
    small = StaticInt8().apply(to_onnx(module, rows, signature), Material(signature, lambda: rows.inputs))
    runtime = Runtime(small, ServingSettings())
    largest = rows.outputs[0].max()
    bright = runtime.run({"x": np.ones((1, 1, 4, 4), np.float32)})[0]
    with torch.no_grad():
        expected = module(torch.ones(1, 1, 4, 4)).numpy()
    assert expected.max() > 1.1 * largest
    assert bright.max() > 1.05 * largest


def test_weights_are_int8_by_channel_and_activations_uint8() -> None:
    graph = onnx.load_from_string(quantised(Logits())[0]).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weights = {name: array for name, array in constants.items() if array.dtype == np.int8 and array.ndim > 1}
    assert sorted(array.shape for array in weights.values()) == [(5, 24), (6, 1, 3, 3)]
    scales = {node.input[0]: constants[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}
    for name, array in weights.items():
        assert scales[name].shape == (array.shape[0],)
        assert len(set(scales[name].tolist())) > 1
    zeros = [constants[node.input[2]].dtype for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zeros
    assert set(zeros) == {np.dtype(np.uint8)}
    assert not [name for name, array in constants.items() if array.dtype == np.float32 and array.ndim > 1]


@pytest.mark.parametrize("kind", KINDS)
def test_no_constant_is_left_that_nothing_uses(kind: type[Net]) -> None:
    model = onnx.load_from_string(quantised(kind())[0])
    used = {name for node in model.graph.node for name in node.input}
    assert [tensor.name for tensor in model.graph.initializer if tensor.name not in used] == []
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("kind", [Logits, EndsInRelu, EndsInSoftmax])
def test_static_int8_answers_a_row_exactly_alike_in_any_company(kind: type[Net]) -> None:
    runtime = Runtime(quantised(kind())[0], ServingSettings())
    rows = batch(100, seed=2).numpy()
    together = runtime.run({"x": rows})[0]
    for size in (1, 2, 7):
        for start in range(0, 100, size):
            alone = runtime.run({"x": rows[start : start + size]})[0]
            np.testing.assert_array_equal(alone, together[start : start + size])


def test_the_same_rows_give_the_same_bytes() -> None:
    assert quantised(Several())[0] == quantised(Several())[0]


def test_quantising_leaves_no_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quantised(Logits())
    assert list(tmp_path.iterdir()) == []


def test_what_it_adds_has_short_names_that_nothing_else_has() -> None:
    """A module's own tensors may be called as short names are."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.q0, self.q1 = nn.Linear(64, 8), nn.Linear(8, 4)

        def forward(self, q2: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"q3": self.q1(torch.tanh(self.q0(q2)))}

    scans = torch.tensor(load_digits().data[:64] / 16, dtype=torch.float32)
    rows = record(Named(), {"q2": scans})
    signature = signature_of(Named(), rows)
    plain = to_onnx(Named(), rows, signature)
    made = onnx.load_from_string(StaticInt8().apply(plain, Material(signature, lambda: rows.inputs)))
    onnx.checker.check_model(made, full_check=True)
    names = [*(tensor.name for tensor in made.graph.initializer), *(n for node in made.graph.node for n in node.output)]
    assert len(names) == len(set(names))
    assert [value.name for value in (*made.graph.input, *made.graph.output)] == ["q2", "q3"]
    assert not [name for name in names if "Quantize" in name]
    outputs = [Runtime(each, ServingSettings()).run({"q2": scans.numpy()})[0] for each in
               (plain, made.SerializeToString())]  # fmt: skip
    assert np.abs(outputs[0] - outputs[1]).max() < 0.05 * np.abs(outputs[0]).max()
