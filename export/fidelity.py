"""How faithful a graph is to the trained module, where nobody says what else is good."""

from __future__ import annotations

from typing import Any

import torch

from shipline.export.outputs import outputs_of

FIDELITY = "fidelity"
#: By so many steps of its dtype a number may differ that is computed in another order.
ROUNDING = 16


class Fidelity:
    """The coefficient of determination (R²) of a graph's answers for the module's own; 1 is the same, higher is better.

    For each output of numbers b[row, element] and the graph's a: 1 - Σ (a - b)² / Σ (b - mean over rows of b)², both
    sums over all rows and elements, in float64. An output that is the same for all rows counts 1 where a is b, else 0,
    both but for rounding; one of whole numbers or truth values counts the share of elements that are equal. Several
    outputs: their mean.
    """

    def __init__(self) -> None:
        self._outputs: list[_Output] = []

    def add(self, found: Any, own: Any) -> None:
        """Take the answers to a batch."""
        pairs = list(zip(outputs_of(found), outputs_of(own), strict=True))
        self._outputs = self._outputs or [_Output(answer) for _, answer in pairs]
        for output, (answer, wanted) in zip(self._outputs, pairs, strict=True):
            output.add(answer, wanted)

    def value(self) -> float:
        """Return it for all that was added."""
        return sum(output.value() for output in self._outputs) / len(self._outputs)


class _Output:
    """One output: sums over the rows so far."""

    def __init__(self, first: torch.Tensor) -> None:
        self._counted = not first.is_floating_point()
        self._shift = first[:1].double()  # the variance of large numbers that hardly differ would drown
        self._rows = self._wrong = self._elements = 0.0
        self._sum = torch.zeros_like(self._shift)
        self._squares = self._errors = self._size = 0.0
        self._step = 0.0 if self._counted else ROUNDING * torch.finfo(first.dtype).eps

    def add(self, found: torch.Tensor, own: torch.Tensor) -> None:
        self._elements += own.numel()
        self._wrong += float((found != own).sum())
        moved = own.double() - self._shift
        self._rows += len(own)
        self._sum += moved.sum(dim=0, keepdim=True)
        self._squares += float((moved**2).sum())
        self._size += float((own.double() ** 2).sum())
        self._errors += float(((found.double() - own.double()) ** 2).sum())

    def value(self) -> float:
        if self._counted:
            return 1 - self._wrong / self._elements
        spread = self._squares - float((self._sum**2).sum()) / self._rows
        rounding = self._step**2 * self._size
        if spread <= rounding:
            return float(self._errors <= rounding)
        return 1 - self._errors / spread
