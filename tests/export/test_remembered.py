"""What a search has measured, the next one need not; what is published is measured anew all the same."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import shipline as sl
from shipline.errors import GateError
from shipline.export import Source, remembered, search, workbench
from shipline.export.latency import Latency
from shipline.export.trained import Trained, look_at
from shipline.export.workbench import Workbench

BEST, SECOND = "int8 on openvino", "float32 on openvino"

pytestmark = pytest.mark.usefixtures("quick_search")


class Clock:
    """Says how long each graph takes, and which were asked for."""

    def __init__(self) -> None:
        self.times = {"float32 on onnxruntime": 1.0, BEST: 0.2, SECOND: 0.5}
        self.asked: list[str] = []

    def measure(self, runtimes: dict[str, Any], rows: Any, batch: int) -> dict[str, Latency]:
        self.asked += [list(runtimes)[-1]] if batch == 1 else []
        times = {name: self.times.get(name, 2.0) for name in runtimes}
        return {name: Latency(batch, taken, taken, taken, (taken,)) for name, taken in times.items()}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(workbench, "measure", clock.measure)
    return clock


def searched(source: Source, looked_at: Trained, clock: Clock, **settings: Any) -> tuple[search.Found, list[str]]:
    """What a search finds, and what it timed for that."""
    clock.asked.clear()
    recipe = sl.Recipe(precision="auto", **{"max_metric_drop": 0.05, "tolerance": 0.2, **settings})
    with Workbench(source, recipe, looked_at) as bench:
        return search.search(bench, recipe), list(clock.asked)


def test_a_search_that_is_repeated_measures_only_what_it_publishes(
    source: Source, looked_at: Trained, clock: Clock
) -> None:
    first, all_of_them = searched(source, looked_at, clock)
    again, asked = searched(source, looked_at, clock)
    assert len(all_of_them) > 6
    assert asked == ["float32 on onnxruntime", BEST]
    assert str(first.chosen.plan) == str(again.chosen.plan) == BEST
    assert not again.chosen.recalled
    assert {each.gate for each in again.chosen.verdicts} == {each.gate for each in first.chosen.verdicts}
    assert [str(each.plan) for each in again.candidates] == [str(each.plan) for each in first.candidates]
    assert again.refused == first.refused
    others = [each for each in again.candidates[1:] if each is not again.chosen]
    assert all(each.recalled for each in others)
    assert any(each.failed for each in others)
    for each, before in zip(again.candidates, first.candidates, strict=True):
        assert (each.verdicts, each.metrics, each.left_out) == (before.verdicts, before.metrics, before.left_out)


def test_one_that_was_ended_goes_on_where_it_was(
    source: Source, looked_at: Trained, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Workbench.judge

    def dies(self: Workbench, candidate: Any, **given: Any) -> None:
        if str(candidate.plan) == BEST:
            raise KeyboardInterrupt
        judge(self, candidate, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "judge", dies)
        with pytest.raises(KeyboardInterrupt):
            searched(source, looked_at, clock)
    found, asked = searched(source, looked_at, clock)
    assert str(found.chosen.plan) == BEST
    assert asked == ["float32 on onnxruntime", BEST]


def test_what_turns_out_otherwise_is_not_published(source: Source, looked_at: Trained, clock: Clock) -> None:
    """The machine was in another mood when it was measured."""
    searched(source, looked_at, clock)
    clock.times[BEST] = 3.0
    found, asked = searched(source, looked_at, clock)
    assert str(found.chosen.plan) == SECOND
    assert not found.chosen.recalled
    assert all(verdict.passed for verdict in found.chosen.verdicts)
    assert asked[:2] == ["float32 on onnxruntime", BEST]
    assert SECOND in asked


def test_what_can_no_longer_run_is_refused(
    source: Source, looked_at: Trained, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(source, looked_at, clock)

    def crashes(self: Workbench, candidate: Any) -> None:
        if str(candidate.plan) == BEST:
            raise GateError("it crashed.")

    monkeypatch.setattr(Workbench, "try_out", crashes)
    found, _ = searched(source, looked_at, clock)
    assert str(found.chosen.plan) == SECOND
    assert f"{BEST}: it crashed." in found.refused


@pytest.mark.parametrize("change", ["limits", "objective", "rows", "off", "old", "damaged", "empty"])
def test_what_was_measured_otherwise_is_measured_again(
    source: Source, looked_at: Trained, clock: Clock, nothing_remembered: Path, change: str
) -> None:
    _, first = searched(source, looked_at, clock)
    points = list((nothing_remembered / "points").glob("*.json"))
    assert len(points) == len(first) - 1
    settings: dict[str, Any] = {}
    if change == "limits":
        settings = {"max_metric_drop": 0.04}
    elif change == "objective":
        settings = {"objective": "size"}
    elif change == "rows":
        looked_at = look_at(source, sl.Recipe(precision="auto", proof_rows=100))
    elif change == "off":
        settings = {"remember": False}
    for path in points:
        if change == "old":
            os.utime(path, (time.time() - remembered.MAX_AGE_S - 1,) * 2)
        elif change in ("damaged", "empty"):
            path.write_bytes(b"" if change == "empty" else b'{"latencies": 3}')
    _, again = searched(source, looked_at, clock, **settings)
    assert again == first


def test_a_directory_that_cannot_be_used_costs_the_memory_alone(
    source: Source, looked_at: Trained, clock: Clock, nothing_remembered: Path
) -> None:
    nothing_remembered.write_text("a file")
    first, asked = searched(source, looked_at, clock)
    again, as_much = searched(source, looked_at, clock)
    assert asked == as_much
    assert str(first.chosen.plan) == str(again.chosen.plan) == BEST


def test_only_so_many_are_kept(
    source: Source, looked_at: Trained, clock: Clock, nothing_remembered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "MAX_FILES", 3)
    searched(source, looked_at, clock)
    assert len(list((nothing_remembered / "points").glob("*"))) == 3 + 1  # and the lock
