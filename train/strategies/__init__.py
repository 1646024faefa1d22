"""How the workers of a run work together."""

from shipline.train.strategies.base import Step, Strategy, step_of
from shipline.train.strategies.ddp import Ddp
from shipline.train.strategies.pick import joins, pick_strategy, waiting

# Lightning's names.
DDPStrategy = Ddp
SingleDeviceStrategy = Strategy

__all__ = [
    "DDPStrategy",
    "Ddp",
    "SingleDeviceStrategy",
    "Step",
    "Strategy",
    "joins",
    "pick_strategy",
    "step_of",
    "waiting",
]
