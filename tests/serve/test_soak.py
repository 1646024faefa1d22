"""A minute of mixed load: no wrong answer, no good request refused, memory flat. `make soak` has ten."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import soak

LEAKY = Path(__file__).parent.parent / "support" / "leaky_server.py"


@pytest.mark.timeout(180)
def test_a_minute_of_mixed_load(tmp_path: Path) -> None:
    with soak.serving(tmp_path) as (url, pid):
        outcome = asyncio.run(soak.soak(url, pid, 60))
    assert not outcome.faults, outcome.faults[:5]
    assert all(outcome.counts[kind] >= 20 for kind in soak.WEIGHTS), outcome.counts
    assert outcome.counts["load"] > 20
    assert outcome.growth_mb < soak.MAX_GROWTH_MB, outcome.rss_mb[:: len(outcome.rss_mb) // 20]


@pytest.mark.timeout(180)
def test_a_server_that_leaks_is_found_out(tmp_path: Path) -> None:
    """The same check, on a server whose backend keeps something of every batch."""
    with soak.serving(tmp_path, [sys.executable, str(LEAKY), "serve"]) as (url, pid):
        outcome = asyncio.run(soak.soak(url, pid, 20))
    assert not outcome.faults, outcome.faults[:5]
    assert outcome.growth_mb > soak.MAX_GROWTH_MB


@pytest.mark.timeout(240)
def test_a_thousand_loads_and_unloads_under_traffic_give_the_memory_back(tmp_path: Path) -> None:
    with soak.serving(tmp_path) as (url, pid):
        outcome = asyncio.run(soak.cycle(url, pid, 1000))
    assert not outcome.faults, outcome.faults[:5]
    assert outcome.counts["load"] == outcome.counts["unload"] == 1000
    assert outcome.counts["good"] > 100
    assert outcome.growth_mb < 5, outcome.rss_mb[:: len(outcome.rss_mb) // 20]
