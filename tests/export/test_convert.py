"""From a module to a graph: names, order, dtypes and the batch stay what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers import ROOT
from small_modules import record
from torch import nn
from torch.utils import _pytree as pytree

from shipline.artifact import ServingSettings
from shipline.errors import GateError
from shipline.export.convert.onnx import to_onnx
from shipline.export.runtime import Runtime
from shipline.export.signature import signature_of
from shipline.signature import Signature, TensorSpec

Tensor = torch.Tensor


class Seeded(nn.Module):
    """The same weights every time."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            self.line = nn.Linear(4, 3)
            self.words = nn.Embedding(11, 4)
            self.dropout = nn.Dropout(0.5)


class Plain(Seeded):
    def forward(self, x: Tensor) -> Any:
        return self.line(self.dropout(x)).relu()


class Named(Seeded):
    def forward(self, x: Tensor) -> Any:
        out = self.line(x)
        return {"zeta": out, "alpha": out.softmax(1), "best": out.argmax(1), "sure": out > 0}


class Tuples(Seeded):
    def forward(self, x: Tensor) -> Any:
        out = self.line(x)
        return out, out.sum(1)


class Nested(Seeded):
    def forward(self, x: Tensor) -> Any:
        out = self.line(x)
        return {"logits": out, "hidden": [x * 2, (x * 3,)]}


class Twice(Seeded):
    def forward(self, x: Tensor) -> Any:
        out = self.line(x)
        return out, x, out


class Words(Seeded):
    """Token numbers and a mask, by keyword alone."""

    def forward(self, *, ids: Tensor, mask: Tensor) -> Any:
        weights = mask.float()[..., None]
        return (self.words(ids) * weights).sum(1) / weights.sum(1).clamp(min=1)


class Differs(Seeded):
    """Two inputs of one shape, so that nothing but the answer would show that they were swapped."""

    def forward(self, left: Tensor, right: Tensor) -> Any:
        return self.line(left - 2 * right)


class Declares(Differs):
    """Names its inputs in another order than forward does."""

    signature = Signature(
        inputs=tuple(TensorSpec(name=name, dtype="float32", shape=(-1, 4)) for name in ("right", "left")),
        outputs=(TensorSpec(name="margin", dtype="float32", shape=(-1, 3)),),
    )


class Defaults(Seeded):
    def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Any:
        return self.line(x) * scale if mask is None else self.line(x) * mask


class Writes(Seeded):
    def forward(self, x: Tensor) -> Any:
        x *= 0.5
        return self.line(x)


class Branches(Seeded):
    def forward(self, x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda x: self.line(x), lambda x: self.line(-x), (x,))


class Doubles(Seeded):
    def forward(self, x: Tensor) -> Any:
        return x.double().cumsum(1)


def floats(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 4, generator=torch.Generator().manual_seed(seed))


def batch_for(module: nn.Module, rows: int) -> dict[str, Tensor]:
    if isinstance(module, Words):
        ids = torch.arange(rows * 5).reshape(rows, 5) % 11
        return {"ids": ids, "mask": (ids % 3 > 0).long()}
    if isinstance(module, Differs):
        return {"left": floats(rows), "right": floats(rows, 1)}
    return {"x": floats(rows)}


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs"),
    [
        (Plain, "x: float32[-1, 4]", "output: float32[-1, 3]"),
        (Named, "x: float32[-1, 4]",
         "zeta: float32[-1, 3], alpha: float32[-1, 3], best: int64[-1], sure: bool[-1, 3]"),
        (Tuples, "x: float32[-1, 4]", "output_0: float32[-1, 3], output_1: float32[-1]"),
        (Nested, "x: float32[-1, 4]", "output_0: float32[-1, 3], output_1: float32[-1, 4], output_2: float32[-1, 4]"),
        (Twice, "x: float32[-1, 4]", "output_0: float32[-1, 3], output_1: float32[-1, 4], output_2: float32[-1, 3]"),
        (Words, "ids: int64[-1, 5], mask: int64[-1, 5]", "output: float32[-1, 4]"),
        (Differs, "left: float32[-1, 4], right: float32[-1, 4]", "output: float32[-1, 3]"),
        (Declares, "right: float32[-1, 4], left: float32[-1, 4]", "margin: float32[-1, 3]"),
        (Defaults, "x: float32[-1, 4]", "output: float32[-1, 3]"),
        (Writes, "x: float32[-1, 4]", "output: float32[-1, 3]"),
        (Branches, "x: float32[-1, 4]", "output: float32[-1, 3]"),
        (Doubles, "x: float32[-1, 4]", "output: float64[-1, 4]"),
    ],
)  # fmt: skip
def test_a_graph_has_the_modules_names_order_and_answers(kind: type[Seeded], inputs: str, outputs: str) -> None:
    """At other batch sizes than the example's, too; and exported while it is in training mode."""
    module = kind()
    rows = record(module, batch_for(module, 4))
    signature = signature_of(module, rows)
    assert str(signature) == f"{inputs} -> {outputs}"
    model = to_onnx(module.train(), rows, signature)
    graph = onnx.load_from_string(model).graph
    assert {value.name for value in graph.input} == {spec.name for spec in signature.inputs}
    assert [value.name for value in graph.output] == [spec.name for spec in signature.outputs]
    runtime = Runtime(model, ServingSettings())
    for size in (1, 5):
        batch = batch_for(module, size)
        found = runtime.run({name: tensor.numpy().copy() for name, tensor in batch.items()})
        with torch.no_grad():
            expected = pytree.tree_leaves(module.eval()(**{name: tensor.clone() for name, tensor in batch.items()}))
        for spec, one, other in zip(signature.outputs, found, expected, strict=True):
            assert one.dtype.name == spec.dtype
            np.testing.assert_allclose(one, other.numpy(), atol=1e-5, err_msg=spec.name)


@pytest.mark.parametrize("kind", [Plain, Branches])
def test_a_graph_says_nothing_of_how_it_was_made(kind: type[Seeded]) -> None:
    """The exporter notes down stack traces; in the branches of an If, too."""
    module = kind()
    rows = record(module, batch_for(module, 4))
    model = to_onnx(module, rows, signature_of(module, rows))
    for trace in (str(ROOT).encode(), b"File ", b"stack_trace", b"/site-packages/", b".py"):
        assert trace not in model


def test_a_graph_is_one_file_with_a_dynamic_batch() -> None:
    module = Plain()
    rows = record(module, batch_for(module, 4))
    graph = onnx.load_from_string(to_onnx(module, rows, signature_of(module, rows))).graph
    for value in (*graph.input, *graph.output):
        batch, *others = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert all(other.dim_value > 0 for other in others)
    assert not any(tensor.external_data for tensor in graph.initializer)


def test_what_the_exporter_cannot_do_is_said_with_its_cause() -> None:
    class HasNoOperator(Seeded):
        def forward(self, x: Tensor) -> Any:
            return torch.linalg.eigvalsh(x[:, :, None] * x[:, None])

    module = HasNoOperator()
    rows = record(module, batch_for(module, 4))
    with pytest.raises(GateError, match="HasNoOperator cannot be exported to ONNX") as caught:
        to_onnx(module, rows, signature_of(module, rows))
    assert "aten._linalg_eigh" in str(caught.value)
    assert "\x1b" not in str(caught.value)


class CalledAsInside(Seeded):
    """Its outputs have the names that the exporter gives to what is inside, and each other's."""

    def forward(self, x: Tensor, words: Tensor) -> Any:
        found = self.words(words).mean(1)
        return {"linear": found + 1, "embedding": self.line(x), "mean": self.line(x + found)}


def test_outputs_may_be_called_as_operators_are() -> None:
    inputs = {"x": torch.linspace(0, 1, 12).reshape(3, 4), "words": torch.arange(6).reshape(3, 2)}
    module = CalledAsInside().eval()
    rows = record(module, inputs)
    signature = signature_of(module, rows)
    runtime = Runtime(to_onnx(module, rows, signature), ServingSettings())
    found = runtime.run({name: tensor.numpy() for name, tensor in inputs.items()})
    assert [spec.name for spec in signature.outputs] == ["linear", "embedding", "mean"]
    for output, wanted in zip(found, module(**inputs).values(), strict=True):
        np.testing.assert_allclose(output, wanted.detach(), atol=1e-6)


class Decides(Seeded):
    def forward(self, x: Tensor) -> Any:
        if x.sum() > 0:
            return self.line(x)
        return self.line(-x)


class DecidesElsewhere(Seeded):
    def forward(self, x: Tensor) -> Any:
        return self.turned(self.line(x))

    def turned(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


@pytest.mark.parametrize("kind", [Decides, DecidesElsewhere])
def test_what_depends_on_values_is_named_with_its_line(kind: type[Seeded]) -> None:
    module = kind().eval()
    rows = record(module, {"x": torch.ones(3, 4)})
    said = r"forward of Decides\w* decides by the values of its inputs at test_convert\.py:\d+, `if x\.sum\(\) > 0:`;"
    with pytest.raises(GateError, match=said):
        to_onnx(module, rows, signature_of(module, rows))


class Large(nn.Module):
    """Two gigabytes of weights, which take four bytes of memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(1).expand(1 << 29))

    def forward(self, x: Tensor) -> Any:
        return x * self.weight[:1]


def test_a_module_that_fits_no_file_is_refused_before_it_is_exported() -> None:
    module = Large()
    rows = record(module, {"x": torch.ones(3, 1)})
    said = r"Large has 2,147,483,648 bytes of weights, .* holds 2,147,483,647 at most\. Nothing was published"
    with pytest.raises(GateError, match=said):
        to_onnx(module, rows, signature_of(module, rows))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_refused_with_what_to_do(dtype: torch.dtype) -> None:
    """As transformers loads them where they were saved so."""
    module = nn.Linear(64, 2).to(dtype)
    rows = record(nn.Linear(64, 2), {"input": torch.zeros(4, 64)})
    said = r"Linear has weights in b?float16, .* Nothing was published\. Give the module in float32 \(`module"
    with pytest.raises(GateError, match=said):
        to_onnx(module, rows, signature_of(module, rows))
