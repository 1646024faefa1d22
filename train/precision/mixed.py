"""32-bit weights, and computations in half of that where torch knows it to be safe (`torch.autocast`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from shipline.train.precision.base import Precision

_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class MixedPrecision(Precision):
    """Autocast: "16-mixed", which scales the loss against underflow, and "bf16-mixed", which need not."""

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, device)
        self.dtype = _DTYPES[name]
        self.scaler = torch.amp.GradScaler(device.type) if self.dtype is torch.float16 else None
        self.scales = self.scaler is not None

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the step under autocast."""

        def run(*arguments: Any) -> Any:
            # Without a cache: a weight cast under no_grad would come back without gradients later in the same step.
            with torch.autocast(self.device.type, self.dtype, cache_enabled=False):
                return step(*arguments)

        return run

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss times the scale."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], after_closure: Callable[[], None]
    ) -> Any:
        """Step on unscaled gradients; not at all where they are infinite, after which the scale is lower."""
        if self.scaler is None:
            return super().optimizer_step(optimizer, closure, after_closure)
        result = closure()
        has_gradients = any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        if has_gradients:
            self.scaler.unscale_(optimizer)
        after_closure()
        if has_gradients:
            self.scaler.step(optimizer)
            self.scaler.update()
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and when it grew last."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the scale."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)
