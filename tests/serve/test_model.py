"""How a served version chooses to run its backend."""

from __future__ import annotations

import pytest

from shipline.artifact import ServingSettings
from shipline.serve import model
from shipline.serve.model import threads_for


@pytest.mark.parametrize(
    ("batch_seconds", "rows", "threads", "cores", "found"),
    [
        (1e-4, 32, 1, 4, 0),  # over sooner than a thread is told of it
        (1e-3, 32, 1, 4, 1),  # the event loop takes longer for 32 requests
        (1e-3, 8, 1, 4, 4),
        (5e-2, 32, 1, 4, 4),
        (5e-2, 32, 2, 4, 2),
        (5e-2, 32, 8, 4, 1),
        (5e-2, 32, 1, 1, 1),
    ],
)
def test_slow_backends_take_every_core_and_fast_ones_no_thread(
    monkeypatch: pytest.MonkeyPatch, batch_seconds: float, rows: int, threads: int, cores: int, found: int
) -> None:
    monkeypatch.setattr(model, "cores", lambda: cores)
    assert threads_for(batch_seconds, ServingSettings(max_batch_size=rows, threads=threads)) == found
