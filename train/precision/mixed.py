"""32-bit weights, and computations in half of that where torch knows it to be safe (`torch.autocast`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer

from shipline.errors import ConfigError
from shipline.train.precision.base import Precision

_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class MixedPrecision(Precision):
    """Autocast: "16-mixed", which scales the loss against underflow, and "bf16-mixed", which need not.

    Args:
        name: one of these.
        device: on which the module computes.
        scaler: to scale the loss with; default: torch's own, as it comes.

    Source: Micikevicius et al. 2018, Mixed Precision Training (https://arxiv.org/abs/1710.03740).
    """

    def __init__(self, name: str, device: torch.device, scaler: torch.amp.GradScaler | None = None) -> None:
        super().__init__(name, device)
        self.dtype = _DTYPES[name]
        if self.dtype is torch.float16 and scaler is None:
            scaler = torch.amp.GradScaler(device.type)
        self.scaler = scaler
        self.scales = scaler is not None
        self._unscaled: set[int] = set()  # optimizers whose gradients are those of the loss itself
        self._stepped: set[int] = set()  # optimizers after whose steps the scale has not been adjusted yet

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the step under autocast."""

        def run(*arguments: Any) -> Any:
            # Without a cache: a weight cast under no_grad would come back without gradients later in the same step.
            with torch.autocast(self.device.type, self.dtype, cache_enabled=False):
                return step(*arguments)

        return run

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss times the scale."""
        if self.scaler is None:
            return loss
        self._adjust()
        return self.scaler.scale(loss)

    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the optimizer's gradients by the scale, once until it steps."""
        if self.scaler is not None and id(optimizer) not in self._unscaled and _has_gradients(optimizer):
            self.scaler.unscale_(optimizer)
            self._unscaled.add(id(optimizer))

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], after_closure: Callable[[], None]
    ) -> Any:
        """Step on unscaled gradients; not at all where they are infinite, after which the scale is lower.

        Raises:
            ConfigError: the optimizer computes gradients several times a step, which no scale can accompany.
        """
        if self.scaler is None:
            return super().optimizer_step(optimizer, closure, after_closure)
        if isinstance(optimizer, LBFGS):
            raise ConfigError(
                f"precision={self.name!r} scales gradients once a step, and LBFGS computes them several times: choose "
                "'bf16-mixed' or '32-true', or another optimizer."
            )
        if id(optimizer) in self._stepped:
            self._adjust()
        result = closure()
        self.unscale(optimizer)
        after_closure()
        if _has_gradients(optimizer):
            self.scaler.step(optimizer)
            self._stepped.add(id(optimizer))
        return result

    def _adjust(self) -> None:
        """Lower the scale after infinite gradients, raise it after many good steps.

        Not before the next loss is scaled: until then, other optimizers may have gradients at the scale that was.
        """
        if self._stepped and self.scaler is not None:
            self.scaler.update()
            self._unscaled.clear()
            self._stepped.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and when it grew last."""
        if self.scaler is None:
            return {}
        self._adjust()
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the scale."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
