"""What only the first of several workers does."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

_log = logging.getLogger("shipline.train")


class _RankZeroOnly:
    """A decorator: the function runs on the first worker, elsewhere `default` is returned in its place."""

    @property
    def rank(self) -> int:
        """The number of this worker, from 0."""
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank()
        return int(os.environ.get("RANK", "0"))  # torchrun's, before the workers have joined

    def __call__(self, function: Callable[..., Any], default: Any = None) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs) if self.rank == 0 else default

        return guarded


rank_zero_only = _RankZeroOnly()


@rank_zero_only
def rank_zero_debug(*args: Any, **kwargs: Any) -> None:
    """Log at level DEBUG."""
    _log.debug(*args, **kwargs)


@rank_zero_only
def rank_zero_info(*args: Any, **kwargs: Any) -> None:
    """Log at level INFO."""
    _log.info(*args, **kwargs)


@rank_zero_only
def rank_zero_warn(message: str | Warning, category: type[Warning] = UserWarning, stacklevel: int = 4) -> None:
    """Warn as `warnings.warn` does."""
    warnings.warn(message, category, stacklevel=stacklevel - 1)
