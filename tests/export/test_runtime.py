"""onnxruntime as export drives it, and how two graphs are timed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from small_modules import record
from torch import nn

from shipline.artifact import ServingSettings
from shipline.errors import GateError
from shipline.export.convert.onnx import to_onnx
from shipline.export.latency import ENOUGH_ROUNDS, ROUNDS, measure
from shipline.export.rows import replaced
from shipline.export.runtime import Once, Runtime
from shipline.export.signature import signature_of
from shipline.signature import DYNAMIC


class Pair(nn.Module):
    """Keyword arguments, and outputs in a structure of their own."""

    def forward(self, *, a: torch.Tensor, b: torch.Tensor) -> Any:
        return {"sum": a + b, "parts": [a * 1, (b * 1,)]}


def test_a_module_answers_through_the_runtime_in_its_own_structure() -> None:
    module, a = Pair(), torch.ones(3, 2)
    rows = record(module, {"a": a, "b": 2 * a})
    signature = signature_of(module, rows)
    runtime = Runtime(to_onnx(module, rows, signature), ServingSettings())
    assert rows.structure is not None
    with replaced(module, "forward", runtime.forward_for(module, signature, rows.structure)):
        found = module(b=torch.full((2, 2), 5.0), a=torch.ones(2, 2))
    assert list(found) == ["sum", "parts"]
    assert torch.equal(found["sum"], torch.full((2, 2), 6.0))
    first, (second,) = found["parts"]
    assert torch.equal(first, torch.ones(2, 2))
    assert torch.equal(second, torch.full((2, 2), 5.0))


def test_answers_of_another_shape_are_refused_before_a_metric_is_computed_with_them() -> None:
    """As OpenVINO gives them for a Fourier transform, which it takes along another axis."""
    module, a = Pair(), torch.ones(3, 2)
    rows = record(module, {"a": a, "b": a})
    signature = signature_of(module, rows)
    assert rows.structure is not None
    shape = (DYNAMIC, 5)
    other = signature.model_copy(
        update={"outputs": (signature.outputs[0].model_copy(update={"shape": shape}), *signature.outputs[1:])}
    )
    forward = Runtime(to_onnx(module, rows, signature), ServingSettings()).forward_for(module, other, rows.structure)
    with pytest.raises(GateError, match=r"answers 3 rows with '.*' of shape \[3, 2\], and the module's is \[-1, 5\]"):
        forward(a=a, b=a)


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(GateError, match="onnxruntime cannot load the graph, so nothing was published"):
        Runtime(b"no graph", ServingSettings())


def test_inputs_that_the_graph_does_not_take_are_named() -> None:
    module = Pair()
    rows = record(module, {"a": torch.ones(2, 3), "b": torch.ones(2, 3)})
    runtime = Runtime(to_onnx(module, rows, signature_of(module, rows)), ServingSettings())
    with pytest.raises(GateError, match=r"cannot run the graph on {'a': \[2, 4\], 'b': \[2, 4\]}"):
        runtime.run({"a": np.ones((2, 4), np.float32), "b": np.ones((2, 4), np.float32)})


class FakeRuntime:
    """Remembers when it ran, and on how many rows; takes so many seconds."""

    def __init__(self, name: str, ran: list[tuple[str, int]], takes: float = 0.0) -> None:
        self._name, self._ran, self._takes = name, ran, takes

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._ran.append((self._name, len(inputs["x"])))
        time.sleep(self._takes)
        return []


@pytest.mark.parametrize("batch", [1, 7])
def test_graphs_are_timed_in_turn_on_the_same_batch(batch: int) -> None:
    """A machine that gets slower is equally unfair to all; fewer rows than the batch are repeated."""
    ran: list[tuple[str, int]] = []
    runtimes: Any = {name: FakeRuntime(name, ran) for name in ("plain", "small")}
    found = measure(runtimes, {"x": np.zeros((3, 2), np.float32)}, batch)
    assert {size for _, size in ran} == {batch}
    turns = [name for i, (name, _) in enumerate(ran) if i == 0 or ran[i - 1][0] != name]
    assert turns == ["plain", "small"] * (len(turns) // 2)
    assert len(turns) >= 10
    for taken in found.values():
        assert taken.batch == batch
        assert min(taken.rounds_ms) <= taken.p10_ms <= taken.median_ms <= taken.p90_ms <= max(taken.rounds_ms)
    assert list(found) == ["plain", "small"]


def test_what_is_clearly_slower_is_timed_no_longer() -> None:
    """Of a slow graph nobody needs to know how slow; of a fast one everybody does."""
    for slow, rounds in (("candidate", ENOUGH_ROUNDS), ("reference", ROUNDS)):
        runtimes: Any = {
            name: FakeRuntime(name, [], 0.04 if name == slow else 0.0) for name in ("reference", "candidate")
        }
        found = measure(runtimes, {"x": np.zeros((1, 2), np.float32)}, 1)
        assert {len(taken.rounds_ms) for taken in found.values()} == {rounds}


def test_each_batch_is_asked_once() -> None:
    class Adds:
        def __init__(self) -> None:
            self.batches = list[int]()

        def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            self.batches.append(len(inputs["a"]))
            return [inputs["a"] + inputs["b"]]

    adds, a = Adds(), np.arange(6.0).reshape(3, 2)
    once = Once(adds)
    for given in ({"a": a, "b": a}, {"a": a[:2], "b": a[:2]}, {"a": a, "b": a + 1}, {"a": a, "b": a.copy()}):
        np.testing.assert_array_equal(once.run(given)[0], given["a"] + given["b"])
    assert adds.batches == [3, 2, 3]
