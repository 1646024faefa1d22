"""Among whatever neighbours, each request gets what it would get alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import artifacts
import numpy as np
from batching import answers, batching, everyone, identity, rows, turns
from doubles import POISON, PoisonError
from hypothesis import given, settings, strategies as st

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays
from shipline.backends.onnx import OnnxBackend
from shipline.serve.batcher import Batcher

# A request: how many turns after the one before it, its width, its rows' values, and what becomes of it.
REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(1, 2),
        st.lists(st.integers(0, 1000), min_size=1, max_size=4),
        st.sampled_from(["fine", "fine", "fine", "poison", "leaves"]),
    ),
    min_size=1,
    max_size=24,
)


async def play(batcher: Batcher, requests: list[Any], ask: Callable[[Arrays, int], Awaitable[Arrays]]) -> None:
    """Ask as the script says; each answer must be that of the request's own rows."""
    tasks: list[tuple[asyncio.Task[Arrays], Arrays, str]] = []
    for delay, width, values, fate in requests:
        await turns(delay)
        inputs = {"x": np.repeat(np.array(values, np.float32)[:, None], width, axis=1)}
        if fate == "poison":
            inputs["x"][-1, -1] = POISON
        task = asyncio.ensure_future(ask(inputs, len(values)))
        tasks.append((task, inputs, fate))
        if fate == "leaves":
            asyncio.get_running_loop().call_soon(task.cancel)
    found = await asyncio.gather(*(task for task, _, _ in tasks), return_exceptions=True)
    for answer, (_, inputs, fate) in zip(found, tasks, strict=True):
        if fate == "poison":
            assert isinstance(answer, PoisonError)
        elif not (fate == "leaves" and isinstance(answer, asyncio.CancelledError)):
            assert isinstance(answer, dict), answer
            np.testing.assert_array_equal(answer["y"], inputs["x"])


@everyone
@given(requests=REQUESTS)
@settings(max_examples=60, deadline=None, database=None)
def test_whatever_happens_to_others_each_answer_is_that_of_its_own_rows(threads: int, requests: list[Any]) -> None:
    async def scene() -> None:
        async with batching(identity().run, threads=threads, max_batch=6, max_queued=1000) as batcher:
            await play(batcher, requests, batcher.submit)
            assert answers([await batcher.submit(rows(7), 1)]) == [[7]]  # behind everything that was left in the queue
            assert (batcher._waiting.rows, batcher._waiting.size) == (0, 0)

    asyncio.run(scene())


@given(data=st.data())
@settings(max_examples=40, deadline=None, database=None)
def test_a_row_among_random_neighbours_gets_what_it_gets_alone(data: st.DataObject) -> None:
    """Through onnxruntime: no padding and no reused buffer shows another request's numbers."""
    numbers = st.floats(-1e3, 1e3, width=32)
    asked = data.draw(st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=20))
    graph = artifacts.linear()
    backend = OnnxBackend.load(graph.model, ServingSettings())

    async def scene() -> None:
        async with batching(backend.run, threads=0) as batcher:
            inputs = [{"x": np.array([row], np.float32)} for row in asked]
            found = await asyncio.gather(*(batcher.submit(item, 1) for item in inputs))
        for answer, item in zip(found, inputs, strict=True):
            np.testing.assert_allclose(answer["y"], backend.run(item)["y"], rtol=1e-5, atol=1e-3)

    asyncio.run(scene())
