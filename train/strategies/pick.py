"""From the name of a strategy to the one that runs."""

from __future__ import annotations

from shipline.plugins import load
from shipline.train.strategies.base import Strategy
from shipline.train.strategies.ddp import Ddp


def pick_strategy(wanted: str | Strategy, workers: int) -> Strategy:
    """Return the strategy; where one worker is alone, one that joins several is the plain one.

    Args:
        wanted: a Strategy, or the name of one; "auto" is DDP for several workers.
        workers: that train together.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if isinstance(wanted, Strategy):
        strategy = wanted
    elif wanted == "auto":
        strategy = Ddp()
    else:
        strategy = load("strategy", wanted)()
    return Strategy() if workers == 1 and strategy.joins_workers else strategy
