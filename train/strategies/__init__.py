"""How the workers of a run work together."""

from shipline.train.strategies.base import Step, Strategy, step_of
from shipline.train.strategies.ddp import Ddp

__all__ = ["Ddp", "Step", "Strategy", "step_of"]
