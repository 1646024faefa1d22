"""Two workers of PyTorch's own process group, without Ray: the same loop, exact metrics, exact resume."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training import metric_rows

from shipline.checkpoint import open_checkpoint
from shipline.store import open_store

WORKERS = 2


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def found(directory: Path) -> list[dict[str, Any]]:
    """What each worker saw."""
    script = str(Path(__file__).with_name("ddp_worker.py"))
    workers = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(WORKERS), str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    ended = []
    try:
        ended = [(worker.communicate(timeout=120), worker.returncode) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for (_, errors), code in ended:
        assert code == 0, errors
    return [json.loads(output.splitlines()[-1]) for (output, _), _ in ended]


def test_metrics_over_all_workers_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    """Also where the rows do not divide by the workers, or a worker has none."""
    for worker in found:
        for size, (together, alone) in zip((1, 2, 5, 37), worker["evaluation"], strict=True):
            assert together["rows"] == alone["rows"] == size
            assert together["right"] == alone["right"]
            assert together["val_acc"] == pytest.approx(alone["val_acc"], abs=1e-7)
            assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-6)
    assert [pair[0] for pair in found[0]["evaluation"]] == [pair[0] for pair in found[1]["evaluation"]]


def test_gradients_are_those_of_the_whole_batch(found: list[dict[str, Any]]) -> None:
    (weights, difference), (other, _) = (worker["gradients"] for worker in found)
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


def test_each_row_that_is_predicted_is_written_once(found: list[dict[str, Any]]) -> None:
    written = [tuple(batch) for worker in found for batch in worker["callbacks"][0]]
    one_worker = [(batch, 0, list(range(37))[4 * batch : 4 * batch + 4]) for batch in range(10)]
    one_worker += [(batch, 1, list(range(3))[2 * batch : 2 * batch + 2]) for batch in range(2)]
    assert sorted(written, key=lambda batch: (batch[1], batch[0])) == one_worker
    for worker in found:
        rows, at_the_end = worker["callbacks"][:2]
        assert at_the_end == [[indices for _, loader, indices in rows if loader == which] for which in (0, 1)]


def test_all_workers_end_where_one_sees_a_spike(found: list[dict[str, Any]], directory: Path) -> None:
    assert [worker["callbacks"][2] for worker in found] == [[2, 3], [2, 3]]
    assert json.loads((directory / "spikes" / "skip_batches.json").read_text()) == [2, 3]


def test_rates_are_those_of_all_workers_and_of_each(found: list[dict[str, Any]]) -> None:
    first, second = (worker["callbacks"][3] for worker in found)
    assert {"train/device/samples_per_sec", "train/samples_per_sec", "train/batches_per_sec"} <= set(first)
    assert not any(name.startswith("train/") for name in second)
