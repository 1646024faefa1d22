"""How many cores a server takes for its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shipline.backends import cores as module
from shipline.backends.cores import cores


@pytest.mark.parametrize(
    ("bound", "quota", "found"),
    [
        (8, None, 8),
        (8, "max 100000\n", 8),
        (8, "200000 100000\n", 2),
        (8, "250000 100000\n", 2),
        (8, "50000 100000\n", 1),
        (2, "800000 100000\n", 2),
        (8, "nonsense", 8),
    ],
)
def test_the_cores_are_those_that_the_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int, quota: str | None, found: int
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(module, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(bound)))
    assert cores() == found
