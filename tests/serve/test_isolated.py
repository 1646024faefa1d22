"""A backend in a process of its own: whatever happens to it costs the requests that did it, and nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import artifacts
import httpx
import numpy as np
import pytest
import torch_files
from backend_conformance import BackendConformance, Case, check_equal
from commands import serving
from faulty import EXIT, GATE, HANG, HANG_ALL, KILL, LEAVE, MEMORY, RAISE, REFUSE, SEGFAULT
from helpers import ROOT, children, wait_until
from serving import check_error, tensor, web

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.backends import RUN_CODE
from shipline.backends.base import Backend
from shipline.errors import InputError
from shipline.serve import frames, isolated as module
from shipline.serve.errors import BackendError, BackendLostError, RequestError
from shipline.serve.isolated import IsolatedBackend, isolated
from shipline.serve.server import BackgroundServer
from shipline.serve.settings import ServerSettings

SUPPORT = str(ROOT / "tests" / "support")
TARGET = "faulty:FaultyBackend"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process of the backend find the faulty one, and artifacts name it."""
    monkeypatch.setenv("PYTHONPATH", SUPPORT)
    monkeypatch.setitem(plugins.BUILT_IN["backend"], "faulty", TARGET)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A named pipe: who reads it waits until somebody has written."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def open_gate(gate: Path) -> None:
    """Let one pass, as soon as it is there."""
    gate.write_bytes(b"x")


@contextlib.contextmanager
def loaded(gate: Path | str = "", **limits: float) -> Iterator[IsolatedBackend]:
    """The faulty backend, isolated, with other limits."""
    kind = isolated(TARGET)
    for name, value in limits.items():
        setattr(kind, name, value)
    backend = kind.load(str(gate).encode(), ServingSettings())
    try:
        yield backend
    finally:
        backend.close()


def row(*values: float) -> artifacts.Arrays:
    return {"x": np.array(values, np.float32)[:, None]}


def check_doubles(backend: Backend) -> None:
    check_equal(backend.run(row(1, 2)), {"y": np.array([[2], [4]], np.float32)})


class TestIsolatedOnnx(BackendConformance):
    """What holds for a backend holds for it in a process of its own."""

    backend_class = isolated("shipline.backends.onnx:OnnxBackend")

    @pytest.fixture
    def case(self) -> Case:
        graph = artifacts.lookup()
        return Case(
            graph.model,
            lambda rows: {"index": np.arange(rows) % 5},
            graph.function,
            {"index": np.array([99])},
        )

    @pytest.fixture
    def backend(self, case: Case) -> Iterator[Backend]:
        backend = self.backend_class.load(case.model, ServingSettings(max_batch_size=8, threads=64))
        yield backend
        backend.close()


def test_which_backends_run_code_is_known_without_importing_them() -> None:
    ours = {name for name, target in plugins.BUILT_IN["backend"].items() if target != TARGET}
    assert {name for name in ours if plugins.load("backend", name).runs_code} == RUN_CODE
    assert module.backend_class("onnxruntime") is plugins.load("backend", "onnxruntime")
    for name in (*RUN_CODE, "faulty"):
        assert issubclass(module.backend_class(name), IsolatedBackend)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3)[:, ::2],
        np.array([[True], [False]]),
        np.float16([1, np.nan, -np.inf]),
        np.zeros((0, 3), np.int64),
        np.array(7, np.uint8),
        np.array([[1 + 2j]]),
        np.array([[b"a\0b", b""]], object),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_arrive_as_they_were_sent(array: np.ndarray) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, frames.packed({"call": 3}, {"x": array, "again": array}))
        header, found = frames.receive(theirs)
        assert header == {"call": 3}
        for name in ("x", "again"):
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found[name], array)
            assert found[name].flags.writeable
        ours.close()
        with pytest.raises(EOFError):
            frames.receive(theirs)


@pytest.mark.parametrize(("dtype", "says"), [("O", "4 bytes behind"), ("M8[s]", "no backend"), ("V8", "no backend")])
def test_what_is_no_array_of_numbers_is_refused(dtype: str, says: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, [*frames.packed({"call": 0}), *_frame([["x", dtype, [1], 8]]), bytes(7) + b"\x01"])
        assert frames.receive(theirs)[0] == {"call": 0}
        with pytest.raises((ValueError, RequestError), match=says):
            frames.receive(theirs)


def _frame(described: list[Any]) -> frames.Parts:
    text = json.dumps({"call": 1, "arrays": described}).encode()
    return [len(text).to_bytes(4, "little"), text]


@pytest.mark.parametrize("how", [EXIT, KILL, SEGFAULT], ids=["exit", "kill", "segfault"])
def test_what_ends_its_process_is_known_when_it_is_alone_and_the_next_process_answers(how: float) -> None:
    with loaded() as backend:
        for _ in range(2):
            with pytest.raises(BackendLostError) as lost:
                backend.run(row(how))
            with pytest.raises(BackendError, match="ended its process on this input"):
                lost.value.again(row(how))
        with pytest.raises(BackendLostError) as lost:
            backend.run(row(1, how))
        check_equal(lost.value.again(row(1)), {"y": np.array([[2]], np.float32)})
        check_doubles(backend)


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        (RAISE, BackendError, "ValueError: a row is poison"),
        (REFUSE, InputError, "'x' is none"),
        (MEMORY, BackendError, "MemoryError"),
        (LEAVE, BackendError, "SystemExit"),
    ],
    ids=["raise", "refuse", "memory", "leave"],
)
def test_what_raises_does_so_here_and_its_process_goes_on(how: float, kind: type[Exception], says: str) -> None:
    with loaded() as backend:
        before = children()
        for _ in range(2 * os.cpu_count()):  # type: ignore[operator]
            with pytest.raises(kind, match=says) as caught:
                backend.run(row(1, how))
            assert type(caught.value) is kind
        check_doubles(backend)
        assert children() == before


@pytest.mark.parametrize("how", [HANG, HANG_ALL], ids=["one thread", "all threads"])
def test_what_hangs_is_ended_and_who_was_computed_beside_it_may_ask_again(gate: Path, how: float) -> None:
    """The second hangs with Python's lock in hand: no thread of its process does anything any more."""
    with loaded(gate, limit_s=2.0) as backend, ThreadPoolExecutor(2) as pool:
        hangs, waits = pool.submit(backend.run, row(how)), Future[None]()
        if how == HANG:
            waits = pool.submit(backend.run, row(GATE))
        with pytest.raises(RequestError, match="no answer in time") as caught:
            hangs.result()
        assert caught.value.status == 504
        if how == HANG:
            innocent = waits.exception()
            if isinstance(innocent, BackendLostError):  # and not late itself, on a machine where all is slow
                again = pool.submit(innocent.again, row(1))
                check_equal(again.result(), {"y": np.array([[2]], np.float32)})
        check_doubles(backend)


def test_more_than_a_pipe_holds_is_sent_to_a_process_that_hangs_in_vain_and_in_time() -> None:
    with loaded(limit_s=5.0) as backend, ThreadPoolExecutor(2) as pool:
        hangs = pool.submit(backend.run, row(HANG_ALL))
        wait_until(lambda: backend._in_flight == 1)
        large = {"x": np.ones((1, 1 << 24), np.float32)}
        sent = pool.submit(backend.run, large)
        assert isinstance(hangs.exception(), RequestError)
        assert isinstance(sent.exception(), BackendLostError | RequestError | None)
        check_equal(backend.run(large), {"y": large["x"] * 2})


def test_the_process_may_take_what_memory_is_free_and_is_ended_before_the_server() -> None:
    with loaded() as backend:
        assert backend._child is not None
        process = Path(f"/proc/{backend._child.pid}")
        (limit,) = (line for line in (process / "limits").read_text().splitlines() if "address space" in line)
        assert 0 < int(limit.split()[3]) < (1 << 42) * 8  # what MEMORY asks for
        assert (process / "oom_score_adj").read_text() == "1000\n"


def test_temporary_files_go_with_the_process_however_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with loaded() as backend:
        for _ in range(2):
            assert len(list(tmp_path.glob("*/*/unpacked"))) == 1
            with pytest.raises(BackendLostError):
                backend.run(row(KILL))
            wait_until(lambda: backend._child is not None)
    assert not list(tmp_path.iterdir())


def test_calls_are_answered_out_of_order(gate: Path) -> None:
    with loaded(gate) as backend, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(backend.run, row(GATE))
        wait_until(lambda: backend._in_flight == 1)
        for _ in range(5):
            check_doubles(backend)
        assert not waits.done()
        open_gate(gate)
        check_equal(waits.result(), {"y": np.array([[2 * GATE]], np.float32)})


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        (b"exit", BackendError, r"ended its process \(3\)"),
        (b"hang", BackendError, "took longer than 2 s"),
        (b"refuse", InputError, "no such model"),
    ],
    ids=["exit", "hang", "refuse"],
)
def test_what_cannot_be_loaded_says_so(
    monkeypatch: pytest.MonkeyPatch, model: bytes, kind: type[Exception], says: str
) -> None:
    monkeypatch.setattr(module, "LOAD_S", 2.0 if model == b"hang" else 300.0)
    with pytest.raises(kind, match=says):
        isolated(TARGET).load(model, ServingSettings())


def test_processes_that_end_too_often_are_not_started_for_a_while() -> None:
    with loaded(starts=2, within_s=3600.0) as backend:
        with pytest.raises(BackendLostError) as lost:
            backend.run(row(KILL))
        assert backend.available
        with pytest.raises(BackendError):
            lost.value.again(row(KILL))
        wait_until(lambda: not backend.available)
        with pytest.raises(RequestError, match="failed too often") as caught:
            backend.run(row(1))
        assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "60"})


def test_after_the_while_there_is_one_again() -> None:
    with loaded(starts=1, within_s=3.0) as backend:
        with pytest.raises(BackendLostError):
            backend.run(row(KILL))
        wait_until(lambda: backend._child is not None)
        check_doubles(backend)
        assert backend.available


def test_signals_that_all_processes_get_leave_it_to_the_server() -> None:
    with loaded() as backend:
        assert backend._child is not None
        pid = backend._child.pid
        for name in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, name)
        check_doubles(backend)
        assert backend._child.pid == pid


def test_closed_it_leaves_no_process_and_refuses(gate: Path) -> None:
    before = children()
    with loaded(gate) as backend, ThreadPoolExecutor(1) as pool:
        waits = pool.submit(backend.run, row(GATE))
        wait_until(lambda: backend._in_flight == 1)
        backend.close()
        assert children() == before
        assert isinstance(waits.exception(), BackendLostError)
        with pytest.raises(RequestError, match="started again"):
            backend.run(row(1))
        backend.close()


# Over HTTP.


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
