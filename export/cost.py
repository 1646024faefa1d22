"""What a module costs, whatever runs it: its parameters, and the operations that a row takes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shipline.backends.base import Arrays
from shipline.export.latency import batch_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cost:
    """How many parameters a module has, and the floating-point operations of its products and convolutions for a row.

    A product and its sum are two operations, as in `torch.utils.flop_counter`. None where it cannot be counted.
    """

    parameters: int
    flops: int | None


def cost_of(module: nn.Module, inputs: Arrays) -> Cost:
    """Return what a module in evaluation mode costs, by its forward on the first of these rows."""
    row = {name: torch.from_numpy(array) for name, array in batch_of(inputs, 1).items()}
    counter, flops = FlopCounterMode(display=False), None
    try:
        with torch.no_grad(), counter:
            module(**row)
        flops = int(counter.get_total_flops())
    except Exception as error:  # whatever a user's module does when its operations are counted
        logger.warning("The operations of %s cannot be counted: %s", type(module).__name__, error)
    return Cost(sum(weight.numel() for weight in module.parameters()), flops)
