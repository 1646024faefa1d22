"""Two workers of PyTorch's own process group, without Ray: the same loop, exact metrics, exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from strategy_conformance import StrategyConformance
from training import metric_rows
from workers import run_workers

from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError
from shipline.store import open_store
from shipline.train.strategies.ddp import Ddp

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


def test_gradients_are_those_of_the_whole_batch(found: list[dict[str, Any]]) -> None:
    (weights, difference), (other, _) = (worker["gradients"] for worker in found)
    assert difference < 1e-6
    assert weights == other


def test_a_batch_that_one_worker_cannot_use_is_skipped_by_all(found: list[dict[str, Any]]) -> None:
    """Within an accumulation, at its end, and all of one: a worker never waits, the weights never differ."""
    (weights, difference), (other, _) = (worker["skips"] for worker in found)
    assert difference < 1e-6
    assert weights == other


def test_a_static_graph_and_accumulation_are_refused() -> None:
    """Both at once end in an error of PyTorch's that says nothing of either."""
    with pytest.raises(ConfigError, match="static_graph=True, and the Trainer accumulates gradients"):
        Ddp(static_graph=True).no_sync(lambda *_: None)


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


@pytest.mark.parametrize("test", [name for name in dir(StrategyConformance) if name.startswith("test_")])
@pytest.mark.parametrize("strategy", ["ddp", "ddp_find_unused_parameters_true", "of the page"])
def test_conformance(found: list[dict[str, Any]], strategy: str, test: str) -> None:
    """What every strategy must do: the workers have run it together."""
    assert [worker["conformance"][strategy][test] for worker in found] == ["", ""]


@pytest.mark.parametrize("what", ["two by hand", "waits by hand", "branches"])
def test_weights_are_those_of_one_worker(found: list[dict[str, Any]], what: str) -> None:
    """Several backward passes in a step, gradients that wait, parameters that are not used: see ddp_gradients.py."""
    for worker in found:
        assert worker[what] < 1e-6


def test_statistics_of_batch_norm_are_exchanged_in_manual_optimization(found: list[dict[str, Any]]) -> None:
    for rank, worker in enumerate(found):
        assert worker["normed"] == [rank, rank, 0, 2]


def test_where_one_worker_overflows_all_leave_the_step_out(found: list[dict[str, Any]]) -> None:
    first, second = (worker["one is infinite"] for worker in found)
    assert first == second
    assert first[1]["scale"] == 2.0**15
    assert all(number == number for number in first[0])


def test_compiled_steps_exchange_gradients(found: list[dict[str, Any]]) -> None:
    for worker in found:
        difference, graphs = worker["compiled"]
        assert difference < 1e-6
        assert graphs == 2  # one with the workers, one alone


def test_rows_are_shared_unless_the_loaders_do(found: list[dict[str, Any]]) -> None:
    assert [worker["shares"] for worker in found] == [[[0, 2], [0, 1, 2, 3]], [[1, 3], [0, 1, 2, 3]]]


def test_batch_norm_over_all_workers_is_refused_on_the_cpu(found: list[dict[str, Any]]) -> None:
    for worker in found:
        assert "sync_batchnorm=True, which PyTorch can do on accelerators only" in worker["refused"]


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
