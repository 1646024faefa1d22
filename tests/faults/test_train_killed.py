"""A run that is killed at twenty random moments ends, resumed, as if nothing had happened: bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent / "train_killed.py"
TRIALS = 10


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What came of it without and with worker processes that load the rows."""
    running = {}
    for workers in (0, 2):
        directory = str(tmp_path_factory.mktemp(f"killed-{workers}"))
        command = [sys.executable, "-W", "ignore", str(SCRIPT), directory, str(workers), str(TRIALS)]
        running[workers] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = {}
    try:
        for workers, process in running.items():
            output, errors = process.communicate(timeout=250)
            assert process.returncode == 0, errors
            found[workers] = json.loads(output)
    finally:
        for process in running.values():
            process.kill()
            process.communicate()
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_like_one_that_was_not(sweeps: dict[int, dict[str, Any]], workers: int) -> None:
    """Weights, optimizer, schedulers, metrics, the rows of the CSV file, counters, callbacks."""
    trials = sweeps[workers]["trials"]
    assert [trial["different"] for trial in trials] == [[]] * TRIALS
    assert all(trial["died"] for trial in trials)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_row_is_trained_on_once_in_every_epoch(sweeps: dict[int, dict[str, Any]], workers: int) -> None:
    assert sweeps[workers]["seen"] == [1.0]
