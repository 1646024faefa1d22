"""The batcher: greedy, in order, and blind to everybody else's rows."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import numpy as np
import pytest
from batching import MAX_BATCH, answers, batching, closed, everyone, identity, in_thread, modes, rows, turns
from doubles import POISON, IdentityBackend, PoisonError, RecordedStats

from shipline.backends.base import Arrays
from shipline.serve.batcher import Batcher


def test_a_request_by_itself_runs_without_any_timer() -> None:
    async def scene() -> None:
        backend = identity()
        loop = asyncio.get_running_loop()
        async with batching(backend.run, threads=0) as batcher:
            asking = asyncio.create_task(batcher.submit(rows(1), 1))
            await turns()
            assert asking.done()
            assert not loop._scheduled  # type: ignore[attr-defined]
        assert answers([asking.result()]) == [[1]]
        assert backend.sizes == [1]

    asyncio.run(scene())


def test_requests_of_one_turn_of_the_loop_run_together_up_to_a_full_batch() -> None:
    async def scene() -> None:
        backend = identity()
        async with batching(backend.run, threads=0, max_batch=4) as batcher:
            found = await asyncio.gather(*(batcher.submit(rows(i), 1) for i in range(10)))
        assert answers(found) == [[i] for i in range(10)]
        assert backend.sizes == [4, 4, 2]

    asyncio.run(scene())


def test_what_arrives_while_the_backend_is_busy_makes_the_next_batch() -> None:
    async def scene() -> None:
        backend = closed()
        async with batching(backend.run, threads=1) as batcher:
            first = asyncio.create_task(batcher.submit(rows(0), 1))
            await in_thread(backend)
            others = [asyncio.create_task(batcher.submit(rows(i), 1)) for i in range(1, 6)]
            await turns()
            assert not any(task.done() for task in (first, *others))  # the loop is free while the thread works
            backend.gate.set()
            assert answers(await asyncio.gather(first, *others)) == [[i] for i in range(6)]
        assert backend.sizes == [1, 5]

    asyncio.run(scene())


def test_as_many_batches_run_at_once_as_there_are_threads_and_no_more() -> None:
    meeting, running = threading.Barrier(2, timeout=30), Counter[str]()

    def run(inputs: Arrays) -> Arrays:
        running["now"] += 1
        running["most"] = max(running["most"], running["now"])
        meeting.wait()  # passes only where two batches are here
        running["now"] -= 1
        meeting.wait()
        return {"y": inputs["x"]}

    async def scene() -> None:
        async with batching(run, threads=2, max_batch=1) as batcher:
            for _ in range(3):  # a thread that was busy is free again
                found = await asyncio.gather(*(batcher.submit(rows(i), 1) for i in range(4)))
                assert answers(found) == [[i] for i in range(4)]
        assert running["most"] == 2

    asyncio.run(scene())


@modes
def test_the_oldest_request_goes_first_and_nobody_overtakes(threads: int) -> None:
    """Five rows do not fit behind four in a batch of eight, and the single row behind them waits its turn."""

    async def scene() -> None:
        backend = identity()
        asked = [rows(1, 2, 3, 4), rows(5, 6, 7, 8, 9), rows(10), rows(*range(11, 19)), rows(19)]
        async with batching(backend.run, threads=threads) as batcher:
            found = await asyncio.gather(*(batcher.submit(item, len(item["x"])) for item in asked))
        assert answers(found) == [item["x"][:, 0].tolist() for item in asked]
        assert backend.sizes == [4, 6, 8, 1]
        assert np.concatenate([batch["x"] for batch in backend.batches])[:, 0].tolist() == list(range(1, 20))

    asyncio.run(scene())


@everyone
def test_rows_of_different_shapes_are_not_mixed(threads: int) -> None:
    async def scene() -> None:
        backend = identity()
        widths = [2, 2, 3, 3, 3, 2]
        asked = [{"x": np.full((1, width), i, np.float32)} for i, width in enumerate(widths)]
        async with batching(backend.run, threads=threads) as batcher:
            found = await asyncio.gather(*(batcher.submit(item, 1) for item in asked))
        for one, item in zip(found, asked, strict=True):
            np.testing.assert_array_equal(one["y"], item["x"])
        assert [batch["x"].shape for batch in backend.batches] == [(3, 2), (3, 3)]

    asyncio.run(scene())


@modes
@pytest.mark.parametrize("first", ["x", "u"])
def test_the_order_in_which_a_request_names_its_inputs_does_not_matter(threads: int, first: str) -> None:
    async def scene() -> None:
        backend = IdentityBackend({"x": "y", "u": "v"})
        asked: list[Arrays] = [
            {"x": np.full((1, 2), 1.0), "u": np.full((1, 3), 2.0)},
            {"u": np.full((1, 2), 4.0), "x": np.full((1, 3), 3.0)},
        ]
        if first == "u":
            asked.reverse()
        async with batching(backend.run, threads=threads) as batcher:
            found = await asyncio.gather(*(batcher.submit(item, 1) for item in asked))
        for one, item in zip(found, asked, strict=True):
            np.testing.assert_array_equal(one["y"], item["x"])
            np.testing.assert_array_equal(one["v"], item["u"])

    asyncio.run(scene())


@modes
def test_stats_are_told_of_every_batch(threads: int) -> None:
    async def scene() -> None:
        stats = RecordedStats()
        async with batching(identity().run, threads=threads, max_batch=4, stats=stats) as batcher:
            await asyncio.gather(*(batcher.submit(rows(i, i), 2) for i in range(3)))
            with pytest.raises(PoisonError):
                await batcher.submit(rows(POISON), 1)
            await turns()
        assert [told[0] for told in stats.told] == [4, 2, 1]
        assert all(waited >= 0 and took >= 0 for _, waited, took in stats.told)

    asyncio.run(scene())


@modes
def test_closing_ends_the_threads(threads: int) -> None:
    """The fixture that watches every test finds a thread that is left; this makes one, and closes it."""

    async def scene() -> None:
        batcher = Batcher(identity().run, max_batch=2, max_queued=2, threads=threads)
        await batcher.submit(rows(1), 1)
        batcher.close()
        batcher.close()

    asyncio.run(scene())


def test_a_batch_that_ends_after_the_server_is_told_to_nobody() -> None:
    """Its thread ends without a word: what it raised would stand in the log, and fail this test."""
    backend, batchers = closed(), list[Batcher]()

    async def scene() -> None:
        batchers.append(batcher := Batcher(backend.run, threads=1, max_batch=MAX_BATCH, max_queued=64))
        job = batcher.begin(rows(1), 1)
        await in_thread(backend)
        batcher.forget(job)

    asyncio.run(scene())
    backend.gate.set()
    for batcher in batchers:
        batcher.close()
    assert backend.sizes == [1]
