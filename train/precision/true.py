"""Weights, inputs and computations all in one kind of number."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from shipline.train.batches import mapped
from shipline.train.precision.base import Precision

_DTYPES = {"64-true": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}
_CASTS = {torch.float64: nn.Module.double, torch.float16: nn.Module.half, torch.bfloat16: nn.Module.bfloat16}


class TruePrecision(Precision):
    """Everything in one dtype: "64-true", "16-true", "bf16-true"."""

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.dtype = _DTYPES[name]

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Return the module with its floating-point weights in this dtype; complex ones stay as they are."""
        return _CASTS[self.dtype](module)  # these, unlike `to`, leave complex weights and torchmetrics' sums alone

    @contextlib.contextmanager
    def init_context(self) -> Iterator[None]:
        """Within it new tensors have this dtype."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    def convert_input(self, batch: Any) -> Any:
        """Return the batch with its floating-point tensors in this dtype."""
        return mapped(batch, _is_floating, lambda tensor: tensor.to(self.dtype))

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the step, in which new tensors have this dtype."""

        def run(*arguments: Any) -> Any:
            with self.init_context():
                return step(*arguments)

        return run


def _is_floating(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and item.is_floating_point()
