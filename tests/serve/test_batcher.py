"""The batcher: greedy, in order, fair to the innocent, and blind to everybody else's rows."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import artifacts
import numpy as np
import pytest
from doubles import POISON, IdentityBackend, PoisonError, RecordedStats
from hypothesis import given, settings, strategies as st

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays
from shipline.backends.onnx import OnnxBackend
from shipline.serve.batcher import Batcher, Run
from shipline.serve.errors import BackendLostError, RequestError

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
