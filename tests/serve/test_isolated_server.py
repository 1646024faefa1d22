"""A server whose backend has a process of its own: a poison row fails alone, and no process outlives the server."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import artifacts
import httpx
import numpy as np
import pytest
import torch_files
from commands import serving
from faulty import EXIT, GATE, HANG_ALL, KILL, MEMORY, RAISE, REFUSE, SEGFAULT
from helpers import children, wait_until
from isolation import SUPPORT, TARGET, name_faulty, open_gate, row
from serving import check_error, tensor, web

from shipline.artifact import ServingSettings
from shipline.serve.isolated import IsolatedBackend
from shipline.serve.server import BackgroundServer
from shipline.serve.settings import ServerSettings


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    name_faulty(monkeypatch)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A named pipe: who reads it waits until somebody has written."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def publish(root: Path, gate: Path) -> None:
    graph = artifacts.Graph(
        str(gate).encode(),
        artifacts.linear(1, 1).signature,
        lambda inputs: {"y": inputs["x"] * 2},
        {"x": np.array([[1.0], [2.0]], np.float32)},
    )
    settings = ServingSettings(max_batch_size=8, threads=64)  # one batch at a time
    artifacts.publish(f"{root}/models/faulty", graph, backend="faulty", serving=settings)


@pytest.fixture
def server(tmp_path: Path, gate: Path) -> Iterator[BackgroundServer]:
    """A server with the faulty model."""
    publish(tmp_path, gate)
    settings = ServerSettings(admin_without_key=True)
    with BackgroundServer(f"{tmp_path}/models", trust=[str(tmp_path)], settings=settings) as running:
        yield running


def ask(url: str, value: float) -> httpx.Response:
    body = {"inputs": [tensor("x", row(value)["x"], "FP32")]}
    return web.post(f"{url}/v2/models/faulty/infer", json=body)


def check_right(answer: httpx.Response, value: float) -> None:
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"][0]["data"] == [2 * value]


def in_one_batch(server: BackgroundServer, gate: Path, values: list[float]) -> list[httpx.Response]:
    """Ask for one row for each value, all while the backend is busy, so that they run together."""
    waiting = server._serving._app.repository.get("faulty")._batcher._waiting
    with ThreadPoolExecutor(len(values) + 1) as pool:
        busy = pool.submit(ask, server.url, GATE)
        backend = backend_of(server)
        wait_until(lambda: backend._in_flight == 1)
        asked = [pool.submit(ask, server.url, value) for value in values]
        wait_until(lambda: waiting.rows == len(values))
        open_gate(gate)
        check_right(busy.result(), GATE)
        return [each.result() for each in asked]


def backend_of(server: BackgroundServer) -> IsolatedBackend:
    backend = server._serving._app.repository.get("faulty")._backend
    assert isinstance(backend, IsolatedBackend)
    return backend


def one_process(before: set[int]) -> Callable[[], bool]:
    return lambda: len(children() - before) == 1


@pytest.mark.parametrize(
    ("how", "status"),
    [(EXIT, 500), (KILL, 500), (SEGFAULT, 500), (RAISE, 500), (MEMORY, 500), (REFUSE, 400)],
    ids=["exit", "kill", "segfault", "raise", "memory", "refuse"],
)
def test_one_poison_row_in_a_batch_fails_alone(tmp_path: Path, gate: Path, how: float, status: int) -> None:
    before = children()
    publish(tmp_path, gate)
    with BackgroundServer(f"{tmp_path}/models", trust=[str(tmp_path)]) as server:
        values = [1.0, 2.0, 3.0, how, 4.0, 5.0, 6.0, 7.0]
        for value, answer in zip(values, in_one_batch(server, gate, values), strict=True):
            if value == how:
                check_error(answer, status)
            else:
                check_right(answer, value)
        check_right(ask(server.url, 9), 9)
        assert web.get(f"{server.url}/v2/health/ready").status_code == 200
        wait_until(one_process(before))
    assert children() == before


def test_a_batch_that_hangs_is_answered_in_time_and_the_next_is_right(
    server: BackgroundServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IsolatedBackend, "limit_s", 1.0)
    check_error(ask(server.url, HANG_ALL), 504, "no answer in time")
    check_right(ask(server.url, 3), 3)


def test_a_process_that_somebody_kills_costs_nobody_his_answer(server: BackgroundServer, gate: Path) -> None:
    backend = backend_of(server)
    with ThreadPoolExecutor(9) as pool:
        busy = pool.submit(ask, server.url, GATE)
        wait_until(lambda: backend._in_flight == 1)
        asked = {value: pool.submit(ask, server.url, float(value)) for value in range(1, 9)}
        assert backend._child is not None
        killed = backend._child.pid
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{killed}").exists())
        open_gate(gate)
        check_right(busy.result(), GATE)
        for value, each in asked.items():
            check_right(each.result(), value)
    assert backend._child is not None
    assert backend._child.pid != killed


def test_a_model_that_fails_too_often_says_so_and_others_are_served(
    server: BackgroundServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IsolatedBackend, "within_s", 3600.0)
    backend = backend_of(server)
    answer = ask(server.url, KILL)
    while backend.available:  # two processes each
        answer = ask(server.url, KILL)
        assert answer.status_code in (500, 503)
    answer = ask(server.url, 1)
    check_error(answer, 503, "failed too often")
    assert answer.headers["retry-after"] == "60"
    check_error(web.get(f"{server.url}/v2/models/faulty/ready"), 503, "failed too often")
    (said,) = web.post(f"{server.url}/v2/repository/index").json()
    assert (said["state"], "too often" in said["reason"]) == ("UNAVAILABLE", True)
    assert web.post(f"{server.url}/v2/repository/index", json={"ready": True}).json() == []
    assert web.get(f"{server.url}/v2/health/ready").status_code == 200


def test_a_server_that_is_killed_leaves_no_process_even_one_that_hangs(tmp_path: Path, gate: Path) -> None:
    """The backend is another package's here, found by its entry point."""
    publish(tmp_path, gate)
    info = tmp_path / "faulty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[shipline.backend]\nfaulty = {TARGET}\n")
    environment = {**os.environ, "PYTHONPATH": f"{SUPPORT}:{tmp_path}"}
    options = ("--trust", str(tmp_path))
    with serving(f"{tmp_path}/models", tmp_path / "log", *options, environment=environment) as process:
        (pid,) = (int(found) for found in tasks(process.popen.pid))
        with ThreadPoolExecutor(1) as pool:
            hangs = pool.submit(ask, process.url, HANG_ALL)
            wait_until(lambda: waits_for_a_signal(pid))
            process.popen.kill()
            assert isinstance(hangs.exception(), httpx.HTTPError)
        wait_until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in state(pid))


def tasks(pid: int) -> list[str]:
    """The process ids of a process's children."""
    found = [(task / "children").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [child for each in found for child in each]


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def waits_for_a_signal(pid: int) -> bool:
    """Whether a thread of the process is in `pause`."""
    where = [(task / "syscall").read_text().split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    return "34" in where


def test_torchscript_is_served_from_a_process_of_its_own(tmp_path: Path) -> None:
    """A poison row beside good ones; then somebody kills the process."""
    torch_files.publish(f"{tmp_path}/mixed")
    types = {"x": "FP32", "ids": "INT64", "keep": "BOOL", "index": "INT64"}

    def answer(url: str, sent: artifacts.Arrays) -> httpx.Response:
        body = {"inputs": [tensor(name, array, types[name]) for name, array in sent.items()]}
        return web.post(f"{url}/v2/models/mixed/infer", json=body)

    def check(found: httpx.Response, sent: artifacts.Arrays) -> None:
        assert found.status_code == 200, found.text
        outputs = {each["name"]: np.reshape(each["data"], each["shape"]) for each in found.json()["outputs"]}
        for name, want in torch_files.mixed_in_numpy(sent).items():
            np.testing.assert_allclose(outputs[name], want, rtol=1e-5)

    good = [torch_files.inputs_of(1) for _ in range(7)]
    poison = {**torch_files.inputs_of(1), "index": np.array([99])}
    with BackgroundServer(str(tmp_path), trust=[str(tmp_path)]) as server, ThreadPoolExecutor(8) as pool:
        bad = pool.submit(answer, server.url, poison)
        for sent, found in zip(good, pool.map(lambda sent: answer(server.url, sent), good), strict=True):
            check(found, sent)
        check_error(bad.result(), 500)
        backend = server._serving._app.repository.get("mixed")._backend
        assert isinstance(backend, IsolatedBackend)
        assert backend._child is not None
        os.kill(backend._child.pid, signal.SIGKILL)
        for sent in good:
            check(answer(server.url, sent), sent)
