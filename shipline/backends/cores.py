"""How many cores there are for this process."""

from __future__ import annotations

import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")


def cores() -> int:
    """Return the cores that this process is bound to, or fewer where its container's quota, or its share, is smaller.

    The share is SHIPLINE_CORES, which processes that serve together are given.
    The quota is that of Linux's control groups, version 2: "<µs> <period in µs>", or "max <period>".
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get("SHIPLINE_CORES", "")
    if share.isdecimal() and int(share):
        bound = min(bound, int(share))
    try:
        quota, period = QUOTA.read_text().split()
    except (OSError, ValueError):
        return bound
    return bound if quota == "max" else max(min(bound, int(quota) // int(period)), 1)
