"""How many cores there are for this process."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Return the cores that this process is bound to, or fewer where its container's quota is smaller.

    The quota is that of Linux's control groups, version 2: "<µs> <period in µs>", or "max <period>".
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text().split()
    except (OSError, ValueError):
        return bound
    return bound if quota == "max" else max(min(bound, int(quota) // int(period)), 1)
