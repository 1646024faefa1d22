"""In which order requests wait, for how long, and what becomes of those whose time is over."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from doubles import WAIT_S, IdentityBackend
from hypothesis import given, settings, strategies as st
from serving import check_error, gated_server, web

from shipline.backends.base import Arrays
from shipline.serve import batcher as batchers
from shipline.serve.batcher import Batcher
from shipline.serve.errors import RequestError
from shipline.serve.jobs import FIRST, LAST, NORMAL, Job, Terms, Waiting, size_of


def row(value: float, width: int = 1) -> Arrays:
    return {"x": np.full((1, width), value, np.float32)}


@contextlib.asynccontextmanager
async def held(**options: Any) -> AsyncIterator[tuple[Batcher, IdentityBackend, asyncio.Task[Arrays]]]:
    """A batcher whose only thread waits at the backend's gate with a first request."""
    backend = IdentityBackend({"x": "y"})
    backend.gate.clear()
    batcher = Batcher(backend.run, **{"max_batch": 2, "max_queued": 64, "threads": 1, **options})
    first = asyncio.create_task(batcher.submit(row(0), 1))
    assert await asyncio.to_thread(backend.entered.wait, WAIT_S)
    try:
        yield batcher, backend, first
    finally:
        backend.gate.set()
        batcher.close()


def asked(batcher: Batcher, value: float, terms: Terms | None = None, width: int = 1) -> asyncio.Task[Arrays]:
    return asyncio.create_task(batcher.submit(row(value, width), 1, terms))


def order(backend: IdentityBackend) -> list[float]:
    """The rows behind the first, as the backend got them."""
    return [float(value) for batch in backend.batches[1:] for value in batch["x"][:, 0]]


def test_the_most_urgent_go_first_and_of_them_the_oldest() -> None:
    async def scene() -> None:
        async with held() as (batcher, backend, first):
            priorities = (LAST, NORMAL, FIRST, NORMAL, FIRST)
            waiting = [asked(batcher, number, Terms(priority)) for number, priority in enumerate(priorities, 1)]
            await asyncio.sleep(0)
            backend.gate.set()
            await asyncio.gather(first, *waiting)
            assert order(backend) == [3, 5, 2, 4, 1]

    asyncio.run(scene())


def test_clients_take_turns_however_much_each_asks() -> None:
    async def scene() -> None:
        async with held() as (batcher, backend, first):
            greedy = [asked(batcher, n, Terms(client="greedy")) for n in range(1, 7)]
            modest = [asked(batcher, n, Terms(client="modest")) for n in (10, 11)]
            await asyncio.sleep(0)
            backend.gate.set()
            await asyncio.gather(first, *greedy, *modest)
            assert order(backend) == [1, 10, 2, 11, 3, 4, 5, 6]

    asyncio.run(scene())


def test_rows_of_other_lengths_wait_for_a_batch_of_their_own() -> None:
    async def scene() -> None:
        async with held() as (batcher, backend, first):
            waiting = [asked(batcher, n, width=n % 2 + 1) for n in range(1, 7)]
            await asyncio.sleep(0)
            backend.gate.set()
            await asyncio.gather(first, *waiting)
            assert [batch["x"].shape for batch in backend.batches[1:]] == [(2, 2), (2, 1), (1, 2), (1, 1)]
            assert sorted(order(backend)) == [1, 2, 3, 4, 5, 6]

    asyncio.run(scene())


def test_who_waits_longer_than_he_likes_is_told_and_nothing_of_his_is_run() -> None:
    async def scene() -> None:
        async with held() as (batcher, backend, first):
            hasty, patient = asked(batcher, 1, Terms(timeout_s=0.01)), asked(batcher, 2)
            with pytest.raises(RequestError, match="no answer in time") as caught:
                await hasty
            assert caught.value.status == 504
            assert batcher._waiting.rows == 1
            backend.gate.set()
            await asyncio.gather(first, patient)
            assert order(backend) == [2]

    asyncio.run(scene())


def test_a_deadline_holds_while_the_backend_works_on_the_rows() -> None:
    async def scene() -> None:
        backend = IdentityBackend({"x": "y"})
        backend.gate.clear()
        batcher = Batcher(backend.run, max_batch=2, max_queued=8, threads=1)
        with pytest.raises(RequestError, match="no answer in time"):
            await batcher.submit(row(1), 1, Terms(timeout_s=0.01))
        backend.gate.set()
        assert (await batcher.submit(row(2), 1))["y"].tolist() == [[2]]
        batcher.close()

    asyncio.run(scene())


def test_on_the_event_loop_what_is_late_is_not_run() -> None:
    async def scene() -> None:
        backend = IdentityBackend({"x": "y"})
        batcher = Batcher(backend.run, max_batch=2, max_queued=8, threads=0)
        with pytest.raises(RequestError, match="no answer in time"):
            await batcher.submit(row(1), 1, Terms(timeout_s=1e-9))
        assert not backend.batches

    asyncio.run(scene())


def test_a_batch_that_hangs_costs_its_own_requests_only() -> None:
    """They get 504, its thread is replaced, and the server answers on."""

    async def scene() -> None:
        async with held(timeout_s=0.05) as (batcher, backend, first):
            mate = asked(batcher, 1, Terms(timeout_s=30))
            with pytest.raises(RequestError, match="no answer in time"):
                await first
            # The mate waited as long. Who comes now finds another thread, at the same gate.
            with pytest.raises(RequestError, match="no answer in time"):
                await mate
            await asyncio.wait_for(batcher.drain(), WAIT_S)
            assert batcher.hung >= 1
            backend.gate.set()
            assert (await batcher.submit(row(7), 1))["y"].tolist() == [[7]]
            await asyncio.wait_for(batcher.drain(), WAIT_S)

    asyncio.run(scene())


def test_a_hung_batch_that_ends_after_all_changes_nothing() -> None:
    async def scene() -> None:
        released = threading.Event()
        calls = iter([lambda: released.wait(WAIT_S)])

        def run(inputs: Arrays) -> Arrays:
            next(calls, lambda: None)()
            return {"y": inputs["x"]}

        batcher = Batcher(run, max_batch=2, max_queued=8, threads=1, timeout_s=0.05)
        with pytest.raises(RequestError, match="no answer in time"):
            await batcher.submit(row(1), 1)
        await asyncio.wait_for(batcher.drain(), WAIT_S)
        assert batcher.hung == 1
        released.set()
        for value in range(5):
            assert (await batcher.submit(row(value), 1))["y"].tolist() == [[value]]
        await batcher.drain()
        batcher.close()

    asyncio.run(scene())


def test_bytes_that_wait_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batchers, "MAX_QUEUED_BYTES", 100)

    async def scene() -> None:
        async with held() as (batcher, backend, first):
            fits = asked(batcher, 1, width=20)
            await asyncio.sleep(0)
            with pytest.raises(RequestError, match="Too many requests") as caught:
                await batcher.submit(row(1, 6), 1)
            assert caught.value.headers == {"retry-after": "1"}
            fits.cancel()
            await asyncio.sleep(0)
            assert (batcher._waiting.rows, batcher._waiting.size) == (0, 0)
            backend.gate.set()
            await first

    asyncio.run(scene())


def test_who_would_not_be_served_soon_is_told_at_once() -> None:
    """But for a few batches, which may wait whatever a row takes."""

    async def scene() -> None:
        async with held() as (batcher, backend, first):
            for row_s, expected in ((0.0, 30), (batchers.MAX_WAIT_S / 20, 21), (30.0, 9)):
                batcher._row_s = row_s
                waiting = [asked(batcher, number) for number in range(30)]
                await asyncio.sleep(0)
                refused = [task for task in waiting if task.done()]
                assert len(waiting) - len(refused) == expected
                for task in waiting:
                    task.cancel()
                for found in await asyncio.gather(*waiting, return_exceptions=True):
                    assert isinstance(found, asyncio.CancelledError | RequestError)
            backend.gate.set()
            await first
            assert 0 < batcher._row_s < 30

    asyncio.run(scene())


def test_a_delay_lets_a_batch_fill() -> None:
    async def scene() -> None:
        backend = IdentityBackend({"x": "y"})
        batcher = Batcher(backend.run, max_batch=4, max_queued=8, threads=0, delay_s=0.01)
        first = asked(batcher, 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = asked(batcher, 2)
        await asyncio.gather(first, second)
        assert backend.sizes == [2]

    asyncio.run(scene())


def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    async def scene() -> None:
        backend = IdentityBackend({"x": "y"})
        batcher = Batcher(backend.run, max_batch=2, max_queued=8, threads=0, delay_s=1000.0)
        for number in (1, 3):
            await asyncio.wait_for(asyncio.gather(asked(batcher, number), asked(batcher, number + 1)), 30)
        assert backend.sizes == [2, 2]

    asyncio.run(scene())


def test_a_request_larger_than_the_batches_that_are_joined_goes_alone() -> None:
    async def scene() -> None:
        async with held() as (batcher, backend, first):
            large = asyncio.create_task(batcher.submit({"x": np.arange(5, dtype=np.float32)[:, None]}, 5))
            small = asked(batcher, 7)
            await asyncio.sleep(0)
            backend.gate.set()
            await asyncio.gather(first, large, small)
            assert [len(batch["x"]) for batch in backend.batches] == [1, 5, 1]

    asyncio.run(scene())


def test_the_size_of_texts_is_that_of_their_bytes() -> None:
    assert size_of({"x": np.zeros((2, 3), np.float32)}) == 24
    assert size_of({"x": np.array([b"four", b"x"], object)}) == 16 + 5


jobs = st.tuples(st.sampled_from([FIRST, NORMAL, LAST]), st.integers(0, 3), st.integers(1, 3), st.integers(1, 2))


@given(st.lists(jobs, max_size=30), st.integers(1, 8), st.data())
@settings(max_examples=200, deadline=None, database=None)
def test_every_job_goes_exactly_once_in_batches_that_fit(given_: list[Any], room: int, data: st.DataObject) -> None:
    async def scene() -> None:
        waiting, loop = Waiting(), asyncio.get_running_loop()
        made = []
        for number, (priority, client, rows, width) in enumerate(given_):
            inputs = {"x": np.zeros((rows, width), np.float32)}
            made.append(Job(inputs, rows, loop.create_future(), number, 1e9, Terms(priority, client), rows))
            waiting.add(made[-1])
        gone = data.draw(st.sets(st.sampled_from(made))) if made else set()
        for number, job in enumerate(gone):
            job.future.cancel()
            if number % 2:
                waiting.remove(job)
                waiting.remove(job)  # once is enough
        taken: list[Job] = []
        while waiting:
            batch = waiting.take(room)
            assert sum(job.rows for job in batch) <= room or len(batch) == 1
            assert len({job.shapes for job in batch}) <= 1
            taken += batch
        assert len(taken) == len(set(map(id, taken)))
        assert set(map(id, taken)) == {id(job) for job in made if job not in gone}
        assert (waiting.rows, waiting.size, list(waiting)) == (0, 0, [])
        for client in range(4):  # nobody overtakes himself
            for priority in (FIRST, NORMAL, LAST):
                for width in (1, 2):
                    own = [j.queued_at for j in taken if (j.terms, j.shapes) == (Terms(priority, client), ((width,),))]
                    assert own == sorted(own)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"priority": -1}, "'priority' must be a whole number from 0; got -1"),
        ({"priority": "1"}, "'priority' must be"),
        ({"priority": True}, "'priority' must be"),
        ({"priority": False}, "'priority' must be"),
        ({"timeout": ""}, "'timeout' must be"),
        ({"timeout": 0.0}, "'timeout' must be"),
        ({"timeout": 1.5}, "'timeout' must be"),
        ({"timeout": -(2**63)}, "'timeout' must be"),
    ],
)
def test_terms_that_are_none_are_400_and_huge_ones_are_cut(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], says: str
) -> None:
    with gated_server(tmp_path, monkeypatch) as gated:
        url = f"{gated.url}/v2/models/gated/infer"
        check_error(web.post(url, json=gated.body(1.0) | {"parameters": parameters}), 400, says)
        for name in ("priority", "timeout"):
            body = gated.body(1.0) | {"parameters": {name: 2**62}}
            assert web.post(url, json=body).status_code == 200
        gated.close_gate()
        late = web.post(url, json=gated.body(1.0) | {"parameters": {"timeout": 10_000}})
        check_error(late, 504, "no answer in time")
        gated.backend.gate.set()
        assert gated.ask(3.0).json()["outputs"][0]["data"] == [3.0]
