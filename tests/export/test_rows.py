"""What is recorded of a module's own validation, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_modules import record
from torch import nn

from shipline.errors import SignatureError
from shipline.export.rows import recording, replaced


class Adds(nn.Module):
    """Takes two inputs, gives a named pair."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> Any:
        return {"sum": a + b, "signs": (a > b, a.sign())}


class Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(0.5)


class Does(nn.Module):
    """A forward that is given by a test."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any, mask: Any = None) -> Any:
        return self.function(x)


def count(rows: int, start: int = 0) -> torch.Tensor:
    return torch.arange(start, start + 2 * rows, dtype=torch.float32).reshape(rows, 2)


def test_rows_come_by_parameter_name_and_outputs_in_order() -> None:
    module = Adds().eval()
    with recording(module, 100) as rows:
        module(count(3), count(3, 9))
        module(b=count(2, 20), a=count(2, 6))
    assert list(rows.inputs) == ["a", "b"]
    np.testing.assert_array_equal(rows.inputs["a"], count(5))
    np.testing.assert_array_equal(rows.inputs["b"], torch.cat([count(3, 9), count(2, 20)]))
    total, greater, sign = rows.outputs
    np.testing.assert_array_equal(total, rows.inputs["a"] + rows.inputs["b"])
    assert (greater.dtype.name, sign.dtype.name) == ("bool", "float32")
    assert (len(rows), rows.seen) == (5, 5)


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (4, 4), (5, 5), (8, 8), (100, 8)])
def test_only_so_many_rows_are_kept_but_all_are_known_again(limit: int, kept: int) -> None:
    rows = record(Does(torch.neg), {"x": count(4)}, {"x": count(4, 8)}, limit=limit)
    assert (len(rows), rows.seen) == (kept, 8)
    np.testing.assert_array_equal(rows.inputs["x"], count(8)[:kept])
    np.testing.assert_array_equal(rows.outputs[0], -count(8)[:kept])
    assert all(rows.has_seen({"x": row[None]}) for row in count(8).numpy())
    assert not rows.has_seen({"x": np.float32([[0, 2]])})
    assert not rows.has_seen({"x": np.float64([[0, 1]])})
    assert not rows.has_seen({"y": count(8).numpy()[:1]})


def test_rows_that_forward_writes_into_are_kept_as_they_came() -> None:
    rows = record(Halves(), {"x": count(3)})
    np.testing.assert_array_equal(rows.inputs["x"], count(3))
    np.testing.assert_array_equal(rows.outputs[0], count(3) / 2)
    assert rows.has_seen({"x": count(3)[1:2].numpy()})


def test_rows_that_the_loader_writes_into_afterwards_are_kept_as_they_came() -> None:
    module, buffer = Does(torch.neg).eval(), count(2)
    with recording(module, 8) as rows:
        module(buffer)
        buffer.zero_()
    np.testing.assert_array_equal(rows.inputs["x"], count(2))


def test_the_modules_answers_are_its_own_while_it_is_recorded() -> None:
    module = Adds()
    with recording(module, 1):
        found = module(count(3), count(3))
    assert torch.equal(found["sum"], 2 * count(3))


@pytest.mark.parametrize("fails", [False, True])
def test_forward_is_put_back(fails: bool) -> None:
    module = Does(torch.neg)
    try:
        with replaced(module, "forward", lambda x: x + 1):
            assert torch.equal(module(count(1)), count(1) + 1)
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert torch.equal(module(count(1)), -count(1))
    assert "forward" not in module.__dict__


def test_a_forward_of_the_modules_own_is_put_back() -> None:
    """As libraries do that patch one module and not its class."""
    module = Does(torch.neg)
    module.forward = lambda x: x * 3  # type: ignore[method-assign, assignment, misc]
    with recording(module, 1) as rows:
        module(count(1))
    np.testing.assert_array_equal(rows.outputs[0], count(1) * 3)
    assert torch.equal(module(count(1)), count(1) * 3)


SCALAR = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("function", "calls", "said"),
    [
        (torch.neg, [{"x": 3}], "forward was given x=int; an exported graph takes tensors alone"),
        (torch.neg, [{"x": count(1), "mask": None}], "forward was given mask=NoneType"),
        (torch.neg, [{"x": [count(1)]}], "forward was given x=list"),
        (torch.neg, [{"x": SCALAR}], "x of forward is no tensor with a batch dimension"),
        (torch.mean, [{"x": count(2)}], "output 0 of forward is no tensor with a batch dimension"),
        (lambda x: (None, {}), [{"x": count(2)}], "forward gives no tensor; an exported graph needs an output"),
        (lambda x: (x, "text"), [{"x": count(2)}], "output 1 of forward is no tensor"),
        (lambda x: x[:1], [{"x": count(2)}], r"must be the batch; found {'x': 2, 'output 0': 1}"),
        (torch.neg, [{"x": count(2), "mask": count(3)}], r"must be the batch; found {'x': 2, 'mask': 3, "),
        (torch.Tensor.bfloat16, [{"x": count(2)}], "output 0 of forward is torch.bfloat16, which a"),
        (torch.neg, [{"x": count(2).to(torch.complex64)}], "x of forward is torch.complex64"),
        (torch.neg, [{"x": count(2)}, {"x": torch.ones(2, 3)}], r"Input 'x' has rows of shape \[2\] and of \[3\]"),
        (lambda x: x.expand(-1, len(x)), [{"x": torch.ones(2, 1)}, {"x": torch.ones(3, 1)}], r"Output 0 has rows of"),
        (torch.neg, [{"x": count(2)}, {"x": count(2), "mask": count(2)}], "calls forward with x and with x, mask"),
        (lambda x: (x,) * len(x), [{"x": count(2)}, {"x": count(1)}], "outputs of one structure in one call"),
    ],
)  # fmt: skip
def test_calls_that_no_graph_can_answer(function: Callable[..., Any], calls: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(SignatureError, match=said):
        record(Does(function), *calls)


def test_a_call_that_differs_is_refused_though_enough_rows_are_kept() -> None:
    """The metric is computed on all rows."""
    with pytest.raises(SignatureError, match="takes the same inputs in every call"):
        record(Does(torch.neg), {"x": count(4)}, {"x": count(4), "mask": count(4)}, limit=2)


@pytest.mark.parametrize(
    ("function", "said"),
    [(torch.neg, "Input 'x' has rows of shape"), (lambda x: torch.ones(len(x), len(x)), "Output 0 has rows of shape")],
    ids=["input", "output"],
)
def test_a_row_of_another_length_is_refused_though_enough_rows_are_kept(
    function: Callable[..., Any], said: str
) -> None:
    """Sentences, say, of as many tokens as they have; the first batch is as long as the proof."""
    calls = [{"x": torch.ones(4, 2)}, {"x": torch.ones(3, 2 if "Output" in said else 5)}]
    with pytest.raises(SignatureError, match=said):
        record(Does(function), *calls, limit=2)
