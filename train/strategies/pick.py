"""From the name of a strategy to the one that runs."""

from __future__ import annotations

from shipline.plugins import load
from shipline.train.environments import ClusterEnvironment
from shipline.train.strategies.base import Strategy
from shipline.train.strategies.ddp import Ddp


def joins(wanted: str | Strategy) -> bool:
    """Whether the strategy, or the one of that name, is for several workers."""
    if isinstance(wanted, Strategy):
        return wanted.joins_workers
    return wanted == "auto" or bool(load("strategy", wanted).joins_workers)


def waiting(environment: ClusterEnvironment) -> Strategy:
    """Return a strategy that knows the place of this worker, and cannot reach the others."""
    strategy = Strategy()
    strategy.rank, strategy.world_size = environment.global_rank(), environment.world_size()
    strategy.local_rank, strategy.node_rank = environment.local_rank(), environment.node_rank()
    return strategy


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
