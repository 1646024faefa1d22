"""Workers that hold a part of the weights each: they train, save and load what one worker would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workers import run_workers

WORKERS = 4

pytestmark = pytest.mark.timeout(600)  # four processes begin and train, on however few cores
SHARE = {
    "zero1": 1, "fsdp, two copies": 1 / 2, "tp": 0.4, "tp, sequences": 0.4, "fsdp+tp, sequences": 0.4, "pp": 1,
    "pp, interleaved": 1 / 2, "pp+fsdp": 1 / 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def found(directory: Path) -> list[dict[str, Any]]:
    """What each worker saw."""
    return run_workers(Path(__file__).with_name("sharded_worker.py"), WORKERS, directory)


def test_weights_and_metrics_are_those_of_one_worker(found: list[dict[str, Any]]) -> None:
    """With gradients clipped and accumulated, and evaluation of five batches by four workers."""
    for worker in found:
        assert len(worker["trained"]) == 13
        for name, (distance, metrics, share) in worker["trained"].items():
            assert distance < 1e-5, name
            for key, (together, alone) in metrics.items():
                assert together == pytest.approx(alone, rel=1e-4), (name, key)
            assert share < SHARE.get(name, 1 / 4) + 0.06, name
    assert found[0]["trained"]["fsdp"][1]["right"][0] > 0


def test_a_module_that_steps_its_optimizer_itself(found: list[dict[str, Any]]) -> None:
    assert max(worker["by_hand"] for worker in found) < 1e-5


def test_gradients_that_wait_for_a_step_are_in_the_checkpoint(found: list[dict[str, Any]]) -> None:
    """Those of sequence parallelism are sums that are still to be made."""
    for worker in found:
        for name, (resumed, alone, gradients) in worker["held"].items():
            assert (resumed, gradients) == (0, 0), name
            assert alone < 1e-4, name


def test_what_workers_told_each_other_is_forgotten(found: list[dict[str, Any]]) -> None:
    assert [worker["keys"] for worker in found] == [0] * WORKERS


def test_a_module_without_memory_gets_weights_by_the_seed(found: list[dict[str, Any]]) -> None:
    """The same ones by every strategy, and by one worker alone; no two layers alike."""
    for worker in found:
        far, deviation, apart = worker["on_meta"]
        assert far.keys() == {"zero1", "fsdp", "tp", "fsdp+tp", "pp", "pp+fsdp"}
        assert max(far.values()) < 1e-5, far
        assert 0.005 < deviation < 0.05
        assert apart > 0.1


def test_a_resumed_run_is_the_whole_one(found: list[dict[str, Any]]) -> None:
    for worker in found:
        for name, (loaded, resumed, _, _) in worker["saved"].items():
            assert loaded == 0, name
            assert resumed == 0, name


def test_other_strategies_and_numbers_of_workers_go_on(found: list[dict[str, Any]], directory: Path) -> None:
    for worker in found:
        for name, (_, _, others, _) in worker["saved"].items():
            assert max(others.values()) < 2e-3, (name, others)
    two = run_workers(Path(__file__).with_name("sharded_worker.py"), 2, directory)
    assert max(far for worker in two for far in worker["far"]) < 2e-3


def test_every_worker_writes_its_part(found: list[dict[str, Any]]) -> None:
    files = found[0]["saved"]["fsdp"][3]
    assert [name for name in files if name.startswith("weights-")] == [
        f"weights-0000{rank}-of-00004.safetensors" for rank in range(WORKERS)
    ]
    assert "weights.safetensors" in found[0]["saved"]["zero1"][3]


def test_what_does_not_fit_is_said(found: list[dict[str, Any]]) -> None:
    said = {
        "sizes": "fsdp has pipeline=1 x replicate=3 x shard=1 x tensor=1, which makes 3 workers, and there are 4",
        "no plan": "let its parallelize_plan() return a dict",
        "no such part": "'blokcs.*.up', and there is no such part. Did you mean",
        "no such style": "the style 'columns'. Known: colwise, rowwise, sequence",
        "callback": "EMAWeightAveraging needs the weights in one piece",
        "no such class": "wrap=Blokc, and Transformer has no such part; it has Attention, Block,",
    }
    for worker in found:
        assert worker["refused"].keys() == said.keys()
        for name, text in said.items():
            assert text in worker["refused"][name]
