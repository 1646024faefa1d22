"""How much memory each model takes, and how much all of them may.

What a model takes is what the process grew by while it was loaded and warmed up, or the size of its file where that is
more: memory that was given back before is used again without growing. A backend in a process of its own takes what that
process does. Other loads and requests at the same time blur it.
"""

from __future__ import annotations

import os
from pathlib import Path

from shipline.serve.errors import MemoryLimitError

MIB = 1 << 20


class Memory:
    """What the models of one process take.

    Args:
        limit: bytes that they may take together; None is no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._taken: dict[object, int] = {}

    def check(self, model: str, needed: int) -> None:
        """Raise MemoryLimitError where a model that takes at least so much may not be loaded beside the others."""
        taken = sum(self._taken.values())
        if self._limit is not None and taken + needed > self._limit:
            raise MemoryLimitError(
                f"Model {model!r} takes at least {_mib(needed)} MiB, and the others take {_mib(taken)}; memory_mib is "
                f"{_mib(self._limit)}. Unload another model first, or raise it."
            )

    def take(self, owner: object, taken: int) -> None:
        """Count what a loaded model takes."""
        self._taken[owner] = taken

    def give_back(self, owner: object) -> None:
        """Count it no more."""
        self._taken.pop(owner, None)


def resident(pid: int | None = None) -> int:
    """Return the bytes of a process, or of this one, that are in memory; 0 where nobody knows."""
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    except OSError:  # it has ended; or this is not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f}" if size >= MIB else f"{size / MIB:.3f}"
