"""What the workers of a run do together: meet, wait, and exchange values."""

from shipline.train.distributed.collectives import (
    all_gather,
    barrier,
    broadcast,
    broadcast_object,
    first_does,
    gather_objects,
    reduce,
)
from shipline.train.distributed.group import environment, join, leave, seed_worker

__all__ = [
    "all_gather",
    "barrier",
    "broadcast",
    "broadcast_object",
    "environment",
    "first_does",
    "gather_objects",
    "join",
    "leave",
    "reduce",
    "seed_worker",
]
