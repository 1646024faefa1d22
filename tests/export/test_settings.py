"""The settings that servers start from are measured."""

from __future__ import annotations

import json
from typing import Any

import pytest

import shipline as sl
from shipline.artifact import Artifact
from shipline.export import Source, settings
from shipline.export.candidate import Candidate
from shipline.export.trained import look_at
from shipline.export.workbench import Workbench


@pytest.fixture
def candidate(source: Source) -> Any:
    """The trained digits as a graph."""
    recipe = sl.Recipe(max_batch_size=12)
    with Workbench(source, recipe, look_at(source, recipe)) as bench:
        yield bench.baseline


def tuned(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch, rates: dict[int, dict[int, float]]
) -> tuple[Any, list[tuple[int, int]]]:
    """The best settings where so many rows a second are measured: threads -> batch -> rows."""
    asked = []

    def measured(runtime: Any, rows: Any, batches: list[int], at_once: int) -> dict[int, float]:
        threads = 4 // at_once
        asked.extend((threads, batch) for batch in batches)
        return {batch: rates[threads].get(batch, 1.0) for batch in batches}

    monkeypatch.setattr(settings, "cores", lambda: 4)
    monkeypatch.setattr(settings, "_rates", measured)
    return settings.tune(candidate)[0], asked


def test_the_fastest_is_chosen(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    best, asked = tuned(candidate, monkeypatch, {1: {8: 900.0}, 4: {4: 1000.0}})
    assert (best.preferred_batch_size, best.threads, best.max_batch_size) == (4, 4, 12)
    assert asked == [(threads, batch) for threads in (1, 4) for batch in (1, 2, 4, 8, 12)]


def test_of_those_that_are_about_as_fast_the_largest_batch_is_chosen(
    candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers join what waits anyway, and each batch has its price."""
    best, _ = tuned(candidate, monkeypatch, {1: {2: 1000.0, 4: 951.0, 12: 940.0}, 4: {4: 990.0}})
    assert (best.preferred_batch_size, best.threads) == (4, 1)


def test_the_report_says_what_was_measured(artifacts: dict[str, Artifact]) -> None:
    artifact = artifacts["int8"]
    serving = json.loads(artifact.read("report.json"))["serving"]
    assert serving["batch"] == artifact.manifest.serving.preferred_batch_size
    assert serving["threads"] == artifact.manifest.serving.threads
    assert {point["batch"] for point in serving["measured"]} == {1, 2, 4, 8, 16, 32}
    assert all(point["rows_per_second"] > 0 for point in serving["measured"])
    assert "rows a second" in artifact.read("report.html").decode()
