"""Batches that fail: whoever is innocent gets the answer that is his."""

from __future__ import annotations

import asyncio
import threading

import artifacts
import numpy as np
import pytest
from batching import MAX_BATCH, answers, batching, everyone, identity, modes, rows, turns
from doubles import POISON, PoisonError

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays
from shipline.backends.onnx import OnnxBackend
from shipline.serve.errors import BackendLostError, RequestError


@everyone
@pytest.mark.parametrize("index", range(MAX_BATCH))
def test_a_poison_row_fails_alone(threads: int, index: int) -> None:
    async def scene() -> None:
        backend = identity()
        async with batching(backend.run, threads=threads) as batcher:
            asked = [batcher.submit(rows(POISON if i == index else i), 1) for i in range(MAX_BATCH)]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert isinstance(found[index], PoisonError)
            assert answers(found[:index] + found[index + 1 :]) == [[i] for i in range(MAX_BATCH) if i != index]
            assert backend.sizes[0] == MAX_BATCH  # it was one batch
            assert answers([await batcher.submit(rows(7), 1)]) == [[7]]  # and the batcher works on

    asyncio.run(scene())


@modes
def test_poison_rows_everywhere_fail_and_the_one_good_row_does_not(threads: int) -> None:
    async def scene() -> None:
        backend = identity()
        async with batching(backend.run, threads=threads) as batcher:
            asked = [batcher.submit(rows(5, 6) if i == 4 else rows(POISON), 2 if i == 4 else 1) for i in range(7)]
            found = await asyncio.gather(*asked, return_exceptions=True)
        assert answers([found[4]]) == [[5, 6]]
        assert all(isinstance(item, PoisonError) for i, item in enumerate(found) if i != 4)

    asyncio.run(scene())


@modes
def test_a_request_with_one_poison_row_fails_whole(threads: int) -> None:
    async def scene() -> None:
        async with batching(identity().run, threads=threads) as batcher:
            found = await asyncio.gather(
                batcher.submit(rows(1, POISON), 2), batcher.submit(rows(2, 3), 2), return_exceptions=True
            )
        assert isinstance(found[0], PoisonError)
        assert answers(found[1:]) == [[2, 3]]

    asyncio.run(scene())


def test_a_graph_that_raises_for_one_row_answers_the_others() -> None:
    """The same through onnxruntime, which fails the whole batch for an index outside of the table."""

    async def scene() -> None:
        graph = artifacts.lookup()
        backend = OnnxBackend.load(graph.model, ServingSettings())
        indices = [0, 4, 99, 1, -7, 2, 3, 0]
        async with batching(backend.run, threads=0) as batcher:
            asked = [batcher.submit({"index": np.array([index])}, 1) for index in indices]
            found = await asyncio.gather(*asked, return_exceptions=True)
        for index, answer in zip(indices, found, strict=True):
            if index in (99, -7):
                assert isinstance(answer, Exception)
            else:
                assert isinstance(answer, dict)
                np.testing.assert_array_equal(answer["row"], graph.function({"index": np.array([index])})["row"])

    asyncio.run(scene())


@modes
def test_a_batch_for_which_there_is_no_room_is_not_tried_again_in_halves(threads: int) -> None:
    sizes = []

    def run(inputs: Arrays) -> Arrays:
        sizes.append(len(inputs["x"]))
        raise RequestError(503, "not now")

    async def scene() -> None:
        async with batching(run, threads=threads) as batcher:
            found = await asyncio.gather(*(batcher.submit(rows(i), 1) for i in range(4)), return_exceptions=True)
        assert [str(error) for error in found] == ["not now"] * 4
        assert sizes == [4]

    asyncio.run(scene())


def test_a_batch_that_is_lost_runs_again_request_by_request_for_those_who_still_wait() -> None:
    again, lost, left = identity(), threading.Event(), threading.Event()

    def run(inputs: Arrays) -> Arrays:
        lost.set()
        assert left.wait(30)
        raise BackendLostError(again.run)

    async def scene() -> None:
        async with batching(run, threads=1) as batcher:
            values = (1, 2, POISON, 4)
            asked = [asyncio.create_task(batcher.submit(rows(value, value), 2)) for value in values]
            assert await asyncio.to_thread(lost.wait, 30)
            asked[1].cancel()
            await turns()
            left.set()
            found = await asyncio.gather(*asked, return_exceptions=True)
        assert answers([found[0], found[3]]) == [[1, 1], [4, 4]]
        assert isinstance(found[1], asyncio.CancelledError)
        assert isinstance(found[2], PoisonError)
        assert again.sizes == [2, 2, 2]

    asyncio.run(scene())
