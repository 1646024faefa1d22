"""Metrics over N workers are those of one, bit for bit: whatever the dataset's size, whoever gets nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workers import run_workers

SCRIPT = Path(__file__).with_name("evaluation_worker.py")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_workers(SCRIPT, 1, tmp_path_factory.mktemp("alone"))[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [2, 3])
def test_every_worker_has_the_metrics_of_one(alone: dict[str, Any], count: int, tmp_path: Path) -> None:
    assert len(alone) == 11
    assert all(metrics for case in alone.values() for metrics in case)
    for found in run_workers(SCRIPT, count, tmp_path):
        for case, expected in alone.items():
            assert [_exact(metrics) for metrics in found[case]] == [_exact(metrics) for metrics in expected], case
            for metrics, others in zip(found[case], expected, strict=True):
                for name in metrics.keys() - _exact(metrics).keys():  # sums that torchmetrics keeps in 32 bits
                    assert float.fromhex(metrics[name]) == pytest.approx(float.fromhex(others[name]), rel=3e-7)


def _exact(metrics: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in metrics.items() if "loss_of_rows" not in name}
