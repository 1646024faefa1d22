"""Modules without a graph that requests could be sent to: what forward takes and gives, and what is declared of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_modules import Tiny

import shipline as sl
from shipline.errors import SignatureError


class NeverCallsForward(Tiny):
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


class TakesASetting(Tiny):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> Any:
        return super().forward(x) * scale

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x, scale=2.0)
        return out


class GivesAMean(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).mean()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x).expand(len(x), 10)
        return out


class GivesOneRow(GivesAMean):
    def forward(self, x: torch.Tensor) -> Any:
        return Tiny.forward(self, x).mean(0)


class GivesAList(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return {"logits": super().forward(x), "classes": 10}

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x)["logits"]
        return out


class SometimesMasks(Tiny):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        return super().forward(x if mask is None else x * mask)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x) if len(x) == 64 else self(x, torch.ones_like(x))
        return out


class GivesItsInput(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return {"logits": super().forward(x), "x": x * 2}

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x)["logits"]
        return out


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (NeverCallsForward, "validation_step of NeverCallsForward never called forward, so there is nothing to export"),
        (TakesASetting, "forward was given scale=float; an exported graph takes tensors alone"),
        (GivesAMean, "output 0 of forward is no tensor with a batch dimension"),
        (
            GivesOneRow,
            "The first dimension of all inputs and outputs must be the batch; found {'x': 64, 'output 0': 10",
        ),
        (GivesAList, "output 1 of forward is no tensor with a batch dimension"),
        (SometimesMasks, "calls forward with x and with x, mask; a graph takes the same inputs in every call"),
        (GivesItsInput, "x is the name of an input and of an output of GivesItsInput"),
    ],
)
def test_a_forward_that_no_graph_can_have(refused: Callable[..., str], module: type[Tiny], said: str) -> None:
    assert said in refused(module, error=SignatureError)


def declared(inputs: list[tuple[str, str, list[int]]], outputs: list[tuple[str, str, list[int]]]) -> sl.Signature:
    first, second = (
        tuple(sl.TensorSpec(name=name, dtype=dtype, shape=tuple(shape)) for name, dtype, shape in specs)
        for specs in (inputs, outputs)
    )
    return sl.Signature(inputs=first, outputs=second)


IN, OUT = ("pixels", "float32", [-1, 64]), ("logits", "float32", [-1, 10])


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ([("pixel", *IN[1:])], [OUT], "'pixel', which forward does not take. Did you mean 'pixels'? forward takes: "),
        ([IN, ("mask", *IN[1:])], [OUT], "'mask', which forward does not take"),
        ([("pixels", "float64", [-1, 64])], [OUT], "'pixels' must be float64; got float32"),
        ([("pixels", "float32", [-1, 8, 8])], [OUT], "'pixels' must have shape [-1, 8, 8]; got [256, 64]"),
        ([("pixels", "float32", [-1, 32])], [OUT], "'pixels' must have shape [-1, 32]; got [256, 64]"),
        ([("pixels", "float32", [-1, -1])], [OUT], "leaves 'pixels' open in a dimension besides the batch ([-1, -1])"),
        ([IN], [OUT, ("again", *OUT[1:])], "names 2 outputs; forward gives 1"),
        ([IN], [("logits", "int64", [-1, 10])], "'logits' must be int64; got float32"),
        ([IN], [("logits", "float32", [-1, 9])], "'logits' must have shape [-1, 9]; got [256, 10]"),
        ([IN], [("pixels", *OUT[1:])], "pixels is the name of an input and of an output"),
    ],
)  # fmt: skip
def test_a_declared_signature_that_real_rows_do_not_fit(
    refused: Callable[..., str], inputs: Any, outputs: Any, said: str
) -> None:
    class Declares(Tiny):
        signature = declared(inputs, outputs)

        def forward(self, pixels: torch.Tensor) -> Any:
            return super().forward(pixels)

    assert said in refused(Declares, error=SignatureError)


def test_a_declared_signature_that_leaves_out_an_input(refused: Callable[..., str]) -> None:
    class Declares(Tiny):
        signature = declared([("x", "float32", [-1, 64])], [OUT])

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
            return super().forward(x * mask)

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self(x, torch.ones_like(x))
            return out

    assert "Unknown input 'mask'; known: x" in refused(Declares, error=SignatureError)


def test_a_declared_signature_that_names_outputs_in_another_order(refused: Callable[..., str]) -> None:
    """Both have one shape, so that nothing else would notice that the names are swapped."""

    class Declares(Tiny):
        signature = declared([("x", "float32", [-1, 64])], [("probabilities", *OUT[1:]), ("logits", *OUT[1:])])

        def forward(self, x: torch.Tensor) -> Any:
            out = super().forward(x)
            return {"logits": out, "probabilities": out.softmax(1)}

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self(x)["logits"]
            return out

    said = refused(Declares, error=SignatureError)
    assert "names the outputs probabilities, logits; forward gives logits, probabilities, in this order" in said
