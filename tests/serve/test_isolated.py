"""A backend in a process of its own: whatever happens to it costs the requests that did it, and nobody else."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import artifacts
import numpy as np
import pytest
from backend_conformance import BackendConformance, Case, check_equal
from faulty import EXIT, GATE, HANG, HANG_ALL, KILL, LEAVE, MEMORY, RAISE, REFUSE, SEGFAULT
from helpers import children, wait_until
from isolation import TARGET, name_faulty, open_gate, row

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.backends import RUN_CODE
from shipline.backends.base import Backend
from shipline.errors import InputError
from shipline.serve import isolated as module
from shipline.serve.errors import BackendError, BackendLostError, RequestError
from shipline.serve.isolated import IsolatedBackend, isolated


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    name_faulty(monkeypatch)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A named pipe: who reads it waits until somebody has written."""
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


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
        asked = [pool.submit(backend.run, row(each)) for each in ([HANG, GATE] if how == HANG else [how])]
        ends = [each.exception() for each in asked]
        late = [each for each in ends if isinstance(each, RequestError)]
        assert late
        assert all(each.status == 504 and "no answer in time" in str(each) for each in late)
        if isinstance(innocent := ends[-1], BackendLostError):  # and not late itself, on a machine where all is slow
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
