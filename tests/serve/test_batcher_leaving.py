"""Callers that leave before their answer, and those for whom the queue has no room."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from batching import MAX_BATCH, answers, batching, closed, identity, in_thread, modes, rows, turns

from shipline.serve.errors import RequestError


@pytest.mark.parametrize("index", range(MAX_BATCH))
def test_a_caller_that_leaves_before_the_batch_is_not_computed_and_changes_nothing(index: int) -> None:
    async def scene() -> None:
        backend = closed()
        async with batching(backend.run, threads=1) as batcher:
            busy = asyncio.create_task(batcher.submit(rows(100), 1))
            await in_thread(backend)
            asked = [asyncio.create_task(batcher.submit(rows(i), 1)) for i in range(MAX_BATCH)]
            await turns()
            asked[index].cancel()
            await turns()
            backend.gate.set()
            found = await asyncio.gather(busy, *asked, return_exceptions=True)
        check_all_but(index, found[1:])
        assert backend.sizes == [1, MAX_BATCH - 1]
        assert index not in backend.batches[1]["x"]

    asyncio.run(scene())


@pytest.mark.parametrize("index", range(MAX_BATCH))
def test_a_caller_that_leaves_while_its_batch_runs_changes_nothing(index: int) -> None:
    async def scene() -> None:
        backend = closed()
        async with batching(backend.run, threads=1) as batcher:
            asked = [asyncio.create_task(batcher.submit(rows(i), 1)) for i in range(MAX_BATCH)]
            await in_thread(backend)
            asked[index].cancel()
            await turns()
            backend.gate.set()
            check_all_but(index, await asyncio.gather(*asked, return_exceptions=True))
            assert backend.sizes == [MAX_BATCH]
            assert answers([await batcher.submit(rows(7), 1)]) == [[7]]

    asyncio.run(scene())


@pytest.mark.parametrize("index", range(MAX_BATCH))
def test_inline_a_caller_that_leaves_before_the_batch_changes_nothing(index: int) -> None:
    async def scene() -> None:
        backend = identity()
        async with batching(backend.run, threads=0) as batcher:
            # The callback runs after the requests have queued, and before their batch is taken.
            asked = [asyncio.ensure_future(batcher.submit(rows(i), 1)) for i in range(MAX_BATCH)]
            asyncio.get_running_loop().call_soon(asked[index].cancel)
            check_all_but(index, await asyncio.gather(*asked, return_exceptions=True))

    asyncio.run(scene())


def check_all_but(index: int, found: list[Any]) -> None:
    assert isinstance(found[index], asyncio.CancelledError)
    del found[index]
    assert answers(found) == [[i] for i in range(MAX_BATCH) if i != index]


@modes
def test_when_every_caller_left_nothing_is_computed_and_the_next_one_is_served(threads: int) -> None:
    async def scene() -> None:
        backend = closed()
        async with batching(backend.run, threads=threads) as batcher:
            if threads:
                busy = asyncio.create_task(batcher.submit(rows(100), 1))
                await in_thread(backend)
            asked = [asyncio.create_task(batcher.submit(rows(i), 1)) for i in range(3)]
            await asyncio.sleep(0)  # they are queued; inline, their batch comes next
            for task in asked:
                task.cancel()
            backend.gate.set()
            await asyncio.gather(*asked, return_exceptions=True)
            await turns()
            assert answers([await batcher.submit(rows(7), 1)]) == [[7]]
            if threads:
                assert answers([await busy]) == [[100]]
        assert not any(set(range(3)) & set(batch["x"].ravel().tolist()) for batch in backend.batches[1:])

    asyncio.run(scene())


def test_a_full_queue_refuses_with_503_and_takes_new_requests_when_there_is_room() -> None:
    async def scene() -> None:
        backend = closed()
        async with batching(backend.run, threads=1, max_batch=4, max_queued=4) as batcher:
            running = asyncio.create_task(batcher.submit(rows(0), 1))
            await in_thread(backend)
            waiting = [asyncio.create_task(batcher.submit(item, len(item["x"]))) for item in (rows(1), rows(2, 3, 4))]
            await turns()
            for item in (rows(5), rows(5, 6)):
                with pytest.raises(RequestError, match="Too many requests are waiting") as caught:
                    await batcher.submit(item, len(item["x"]))
                assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "1"})
            backend.gate.set()
            assert answers(await asyncio.gather(running, *waiting)) == [[0], [1], [2, 3, 4]]
            assert answers([await batcher.submit(rows(5, 6, 7, 8), 4)]) == [[5, 6, 7, 8]]

    asyncio.run(scene())


def test_callers_that_left_make_room() -> None:
    async def scene() -> None:
        backend = closed()
        async with batching(backend.run, threads=1, max_queued=4) as batcher:
            for _ in range(3):
                backend.gate.clear()
                backend.entered.clear()
                running = asyncio.create_task(batcher.submit(rows(0), 1))
                await in_thread(backend)
                waiting = [asyncio.create_task(batcher.submit(rows(i), 1)) for i in range(4)]
                await turns()
                for task in waiting:
                    task.cancel()
                backend.gate.set()
                assert answers([await running]) == [[0]]
                await asyncio.gather(*waiting, return_exceptions=True)
                await turns()
        assert backend.sizes == [1, 1, 1]

    asyncio.run(scene())
