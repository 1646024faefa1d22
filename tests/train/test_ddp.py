"""Two workers of PyTorch's own process group, without Ray: the same loop, exact metrics, exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import metric_rows
from workers import run_workers

from shipline.checkpoint import open_checkpoint
from shipline.store import open_store

WORKERS = 2


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def found(directory: Path) -> list[dict[str, Any]]:
    """What each worker saw."""
    return run_workers(Path(__file__).with_name("ddp_worker.py"), WORKERS, directory)


def test_metrics_over_all_workers_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    """Also where the rows do not divide by the workers, or a worker has none."""
    for worker in found:
        for size, (together, alone) in zip((1, 2, 5, 37), worker["evaluation"], strict=True):
            assert together["rows"] == alone["rows"] == size
            assert together["right"] == alone["right"]
            assert together["val_acc"] == pytest.approx(alone["val_acc"], abs=1e-7)
            assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-6)
    assert [pair[0] for pair in found[0]["evaluation"]] == [pair[0] for pair in found[1]["evaluation"]]


@pytest.mark.parametrize("how", ["gradients", "by_hand"])
def test_gradients_are_those_of_the_whole_batch(found: list[dict[str, Any]], how: str) -> None:
    (weights, difference), (other, _) = (worker[how] for worker in found)
    assert difference < 1e-6
    assert weights == other


def test_a_batch_that_one_worker_cannot_use_is_skipped_by_all(found: list[dict[str, Any]]) -> None:
    """Within an accumulation, at its end, and all of one: a worker never waits, the weights never differ."""
    (weights, difference), (other, _) = (worker["skips"] for worker in found)
    assert difference < 1e-6
    assert weights == other


def test_some_epochs_and_the_rest_are_all_of_them(found: list[dict[str, Any]], directory: Path) -> None:
    for worker in found:
        whole, parts = worker["resume"]
        assert whole == parts
    assert found[0]["resume"] == found[1]["resume"]
    whole_run, parts_run = (f"{directory}/runs/{name}/version_0" for name in ("whole", "parts"))
    assert metric_rows(whole_run) == metric_rows(parts_run)
    assert open_store(f"{parts_run}/checkpoints").list() == ["epoch=3-step=8"]
    assert open_checkpoint(f"{parts_run}/last").manifest.global_step == 8


def test_all_workers_decide_alike(found: list[dict[str, Any]]) -> None:
    """Each sees other numbers; decisions go by their mean, 0, 0.5, 1, so that the third epoch is the last."""
    by_steps, by_epochs, by_wish = found[0]["stop"]
    assert by_steps[:3] == by_epochs[:3] == [3, 0.0, 1.0]
    assert by_steps[3].endswith("runs/in_steps/epoch=0-step=2")
    assert by_wish == 4
    assert found[1]["stop"] == found[0]["stop"]
