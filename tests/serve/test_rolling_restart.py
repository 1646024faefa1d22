"""Three replicas are restarted one after the other; a client that asks one more of them sees no error (S22)."""

from __future__ import annotations

import contextlib
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import artifacts
import httpx
from doubles import WAIT_S
from helpers import free_port, wait_until
from serving import GRAPHS, infer

from shipline.serve.server import BackgroundServer


def test_a_rolling_restart_costs_a_client_with_one_retry_nothing(tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/linear", GRAPHS["linear"])
    ports = [free_port() for _ in range(3)]
    over, missed, answered = threading.Event(), threading.Semaphore(0), [0, 0, 0]

    def ask(client: int) -> None:
        """Ask the replicas in turn; an answer that is wrong, or none from two of them, is raised."""
        for number in itertools.count(client):
            if over.is_set():
                return
            try:
                infer(f"http://127.0.0.1:{ports[number % 3]}", seed=number)
            except (httpx.TransportError, AssertionError) as error:  # it is away, or not ready yet: 503
                if isinstance(error, AssertionError) and "being loaded" not in str(error):
                    raise
                missed.release()
                infer(f"http://127.0.0.1:{ports[(number + 1) % 3]}", seed=number)
            answered[client] += 1

    with contextlib.ExitStack() as last, ThreadPoolExecutor(3) as pool:
        replicas = [contextlib.ExitStack() for _ in ports]
        for replica, port in zip(replicas, ports, strict=True):
            last.enter_context(replica).enter_context(BackgroundServer(str(tmp_path), port=port))
        clients = [pool.submit(ask, number) for number in range(3)]
        try:
            for replica, port in zip(replicas, ports, strict=True):
                replica.close()
                while missed.acquire(blocking=False):  # what came before
                    pass
                assert missed.acquire(timeout=WAIT_S), [client.exception(0) for client in clients if client.done()]
                replica.enter_context(BackgroundServer(str(tmp_path), port=port))
                then = list(answered)  # the next goes when nobody is on his way from one to the other
                wait_until(lambda then=then: all(now > before for now, before in zip(answered, then, strict=True)))
        finally:
            over.set()
        for client in clients:
            client.result()
