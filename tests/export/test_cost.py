"""What a module costs: counted, not measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from module_pass_conformance import seeded
from small_modules import Tiny
from torch import nn

from shipline.export.cost import Cost, cost_of


class Looks(Tiny):
    """A convolution, and a module that nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(1, 4, 3)
        self.net = nn.Linear(4 * 36, 10, bias=False).requires_grad_(requires_grad=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(self.look(x.unflatten(1, (1, 8, 8))).flatten(1))


def test_products_and_sums_of_a_row_are_counted() -> None:
    rows = {"x": np.zeros((7, 64), np.float32)}
    assert cost_of(seeded(Looks), rows) == Cost(4 * 9 + 4 + 1440, 2 * (4 * 9 * 36 + 1440))


def test_what_cannot_be_counted_ends_no_export(caplog: Any) -> None:
    class Particular(Tiny):
        def forward(self, x: torch.Tensor) -> Any:
            if len(x) < 2:
                raise ValueError("one row is too few")
            return self.net(x)

    found = cost_of(seeded(Particular), {"x": np.zeros((7, 64), np.float32)})
    assert found == Cost(64 * 64 + 64 + 640 + 10, None)
    assert "The operations of Particular cannot be counted: one row is too few" in caplog.text
