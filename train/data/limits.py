"""How many batches of a loader are taken."""

from __future__ import annotations

from typing import Any

from shipline.errors import ConfigError
from shipline.train.data.combined import CombinedLoader, flatten, own_combined

#: A number of batches, a share of them, or None for all.
Limit = int | float | None


def several(loaders: Any) -> list[Any]:
    """Return the loaders of a stage as a list: none, one, or those in a list, a dict or a CombinedLoader."""
    if loaders is None:
        return []
    loaders = own_combined(loaders)
    if isinstance(loaders, CombinedLoader):
        return loaders.flattened if loaders.mode == "sequential" else [loaders]
    return flatten(loaders)


def count_batches(loader: Any, limit: Limit) -> int | None:
    """Return how many batches to take; None: all, of a loader that does not know how many it has.

    Raises:
        ConfigError: the limit is a share of an unknown number, or of so few that none is left.
    """
    try:
        batches: int | None = len(loader)
    except (TypeError, NotImplementedError):
        batches = None
    if limit is None or isinstance(limit, int):
        return least(batches, limit)
    if limit == 1.0:
        return batches
    if batches is None and limit:
        raise ConfigError(f"A limit of {limit} is a share of the batches, and this loader has no length: set a number.")
    taken = int((batches or 0) * limit)
    if not taken and limit:
        raise ConfigError(f"A limit of {limit} leaves none of {batches} batches: set a number, or a larger share.")
    return taken


def least(*counts: int | None) -> int | None:
    """Return the smallest of the counts that are given."""
    return min((count for count in counts if count is not None), default=None)
