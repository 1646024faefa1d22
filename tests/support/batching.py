"""Batchers and requests for the tests of the batcher."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from doubles import IdentityBackend

from shipline.backends.base import Arrays
from shipline.serve.batcher import Batcher, Run

MAX_BATCH = 8
everyone = pytest.mark.parametrize("threads", [0, 1, 3], ids=["inline", "threaded", "three threads"])
modes = pytest.mark.parametrize("threads", [0, 1], ids=["inline", "threaded"])


@contextlib.asynccontextmanager
async def batching(run: Run, *, threads: int, **options: Any) -> AsyncIterator[Batcher]:
    """A batcher that gives its threads back."""
    batcher = Batcher(run, threads=threads, **{"max_batch": MAX_BATCH, "max_queued": 64, **options})
    try:
        yield batcher
    finally:
        batcher.close()


def rows(*values: float) -> Arrays:
    """A request of one row for each value."""
    return {"x": np.array(values, np.float32)[:, None]}


async def turns(count: int = 5) -> None:
    """Let everything that can run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def in_thread(backend: IdentityBackend) -> None:
    """Return when a batch waits at the backend's gate."""
    assert await asyncio.to_thread(backend.entered.wait, 30)


def identity() -> IdentityBackend:
    return IdentityBackend({"x": "y"})


def closed() -> IdentityBackend:
    """A backend whose first batch waits at the gate."""
    backend = identity()
    backend.gate.clear()
    return backend


def answers(found: list[Any]) -> list[Any]:
    """Each request's numbers, or the error it got."""
    return [item if isinstance(item, BaseException) else item["y"][:, 0].tolist() for item in found]
