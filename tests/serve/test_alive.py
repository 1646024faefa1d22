"""Liveness is an answer: a server is not alive where one of its models computes no more, whatever else works (S20)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grpc_calls import calling
from helpers import wait_until
from serving import Gated, gated_server, web

from shipline.backends.base import Arrays
from shipline.serve import model
from shipline.serve.batcher import OWN
from shipline.serve.jobs import Job, Terms

LIVE = "/v2/health/live"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    """A server whose batches wait at a gate, and whose probes always ask, and do not wait for long."""
    monkeypatch.setattr(model, "RECENT_S", 0.0)
    monkeypatch.setattr(model, "ALIVE_S", 0.5)
    monkeypatch.setattr(model, "TIMES", 0.0)
    monkeypatch.setattr("shipline.serve.model.cores", lambda: 1)
    with gated_server(tmp_path, monkeypatch, grpc_port=0) as server:
        yield server
        server.backend.gate.set()


def live(server: Gated) -> bool:
    """Whether it says that it is alive; the same over gRPC."""
    answer = web.get(server.url + LIVE)
    said: bool = answer.json()["live"]
    assert answer.status_code == (200 if said else 503)
    with calling(server.serving.grpc_address) as caller:
        assert caller.call("ServerLive").live == said
    return said


def test_an_idle_server_computes_a_row_to_know_that_it_lives(server: Gated) -> None:
    stats = f"{server.url}/v2/models/gated/stats"
    before, count = web.get(stats).json(), len(server.backend.batches)
    assert live(server)
    assert [len(batch["x"]) for batch in server.backend.batches[count:]] == [1, 1]
    assert web.get(stats).json() == before  # and nobody sees it in what is counted


def test_a_thread_that_waits_for_ever_is_found_out(server: Gated) -> None:
    with ThreadPoolExecutor(1) as pool:
        server.close_gate()
        asked = pool.submit(server.ask, 7.0)
        server.wait_for(1)
        assert server.backend.entered.wait(30)
        assert not live(server)
        assert web.get(f"{server.url}/v2/models/gated").status_code == 200  # a constant 200 would still be said
        server.backend.gate.set()
        assert asked.result().json()["outputs"][0]["data"] == [7]
        assert live(server)


def test_an_idle_server_whose_thread_is_stuck_is_found_out(server: Gated) -> None:
    server.close_gate()
    assert not live(server)
    server.backend.gate.set()
    wait_until(lambda: live(server))


@pytest.mark.parametrize("lost", ["_next", "_finish"])
def test_a_batch_that_is_lost_is_found_out(server: Gated, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    """What takes batches, or hands answers on, dies: by a mistake of ours, which has no name yet."""

    def dies(*_: object) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(server.batcher, lost, dies)
    assert not live(server)
    assert web.get(f"{server.url}/v2/models/gated/ready").status_code == 200


def test_a_row_that_fails_is_a_sign_of_life(server: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(inputs: Arrays) -> Arrays:
        raise ValueError(f"not {sorted(inputs)}")

    monkeypatch.setattr(server.batcher, "_run", refuses)
    assert live(server)


def test_many_probes_are_one(server: Gated) -> None:
    server.close_gate()
    count = len(server.backend.batches)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: web.get(server.url + LIVE), range(8)))
    assert {answer.status_code for answer in answers} == {503}
    server.backend.gate.set()
    wait_until(lambda: len(server.backend.batches) > count)
    assert json.loads(answers[0].content) == {"live": False}


def test_a_probe_that_was_given_up_is_counted_by_nobody(server: Gated) -> None:
    """Its row is computed when the thread goes on, and stands in no metric then either; nor among those that wait."""
    stats, count = f"{server.url}/v2/models/gated/stats", len(server.backend.batches)
    before = web.get(stats).json()
    server.close_gate()
    assert not live(server)
    server.backend.gate.set()
    wait_until(lambda: len(server.backend.batches) > count and not server.batcher._running)
    assert web.get(stats).json() == before
    assert not server.batcher._waiting


def test_a_row_of_a_probe_in_a_batch_of_others_is_not_counted(server: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = f"{server.url}/v2/models/gated/stats"
    batcher, begin = server.batcher, server.batcher._enter

    def both(inputs: Arrays, rows: int, terms: Terms, size: int) -> Job:
        if terms is OWN:
            begin(inputs, rows, Terms(), size)  # who has asked in the same turn of the loop
        return begin(inputs, rows, terms, size)

    before, count = web.get(stats).json()["model_stats"][0], len(server.backend.batches)
    monkeypatch.setattr(batcher, "_enter", both)
    assert web.get(server.url + LIVE).status_code == 200
    assert [len(batch["x"]) for batch in server.backend.batches[count:]] == [2]
    after = web.get(stats).json()["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 1


def test_a_probe_finds_room_where_nobody_else_does(server: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.batcher, "_max_queued", 0)
    assert server.ask(1.0).status_code == 503
    assert live(server)
