"""What every precision is; and the module's own numbers as they are, which is its simplest form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class Precision:
    """Computes in the numbers that the module is made of: "32-true".

    Args:
        name: by which it was asked for.
        device: on which the module computes.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        #: Whether `optimizer_step` does more than to step; where it does not, the loop steps without it.
        self.scales = type(self).optimizer_step is not Precision.optimizer_step

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Bring the module's weights to this precision, in place, and return it.

        Called when its last layers are made, before its optimizers are.
        """
        return module

    def init_context(self) -> AbstractContextManager[Any]:
        """Within it layers are made: what `configure_model` makes has this precision."""
        return nullcontext()

    def convert_input(self, batch: Any) -> Any:
        """Return the batch with floating-point tensors in this precision."""
        return batch

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a training, validation, test or prediction step that computes in this precision."""
        return step

    def release(self, module: nn.Module) -> None:
        """Undo what `convert_module` put around the weights; they stay in this precision."""

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss from which the gradients are to be computed."""
        return loss

    def unscale(self, optimizer: Optimizer) -> None:
        """Make the optimizer's gradients those of the loss itself; a second call changes nothing."""

    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], after_closure: Callable[[], None]
    ) -> Any:
        """Step: `closure` computes the gradients, `after_closure` looks at them and clips them."""

        def both() -> Any:
            result = closure()
            after_closure()
            return result

        return optimizer.step(both)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of `state_dict`."""
