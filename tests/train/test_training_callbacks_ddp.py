"""Callbacks on two workers, which see other rows and draw other numbers, and must end with one module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workers import run_workers


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each worker has."""
    script = Path(__file__).with_name("callbacks_ddp_worker.py")
    return run_workers(script, 2, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("name", ["ema", "swa", "pruned", "rounded", "probed"])
def test_all_workers_have_the_same_module_and_state(found: list[dict[str, Any]], name: str) -> None:
    """Averages and their batch norm, random masks, ranges, the probe."""
    one, other = (worker["states"][name] for worker in found)
    assert one[0] == other[0]
    assert one[1] == other[1]
    assert one[1]


def test_a_probe_changes_nothing(found: list[dict[str, Any]]) -> None:
    for worker in found:
        assert worker["states"]["probed"][0] == worker["alone"]


def test_what_is_thawed_later_learns_from_all_workers(found: list[dict[str, Any]]) -> None:
    """What joins the gradients has been told of the parameters that could be trained in the beginning."""
    for worker in found:
        together, alone = worker["finetuned"]
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-4)
    assert found[0]["finetuned"][0] == found[1]["finetuned"][0]


def test_all_workers_find_one_learning_rate(found: list[dict[str, Any]]) -> None:
    results, lr, weights = found[0]["searched"]
    assert len(results["lr"]) == len(results["loss"]) == 20
    assert lr in results["lr"]
    assert found[1]["searched"] == [results, lr, weights]


def test_a_batch_size_is_found_by_one_worker(found: list[dict[str, Any]]) -> None:
    for worker in found:
        assert worker["refused"].startswith("BatchSizeFinder works with one worker, and there are 2")
