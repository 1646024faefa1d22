"""What traces a user's code may hang, crash or ask for all memory: that costs the way alone, and no more."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import wait_until
from small_modules import Tiny
from torch import nn

import shipline as sl
from shipline.backends import trial
from shipline.errors import ConfigError, GateError, SignatureError
from shipline.export import apart as apart_module
from shipline.export.apart import apart

GIB = 1 << 30


def hang() -> None:
    while True:
        pass


def take_memory() -> None:
    taken = []
    while True:
        taken.append(bytearray(64 << 20))


def take_tensors() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "free_memory", lambda: GIB // 2)


@pytest.fixture
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart_module, "GRACE_S", 60.0)  # what is to say where it hangs may be slow to get to it


def test_what_it_returns_comes_back_and_what_it_changes_does_not(tmp_path: Path) -> None:
    changed = []

    def work() -> dict[str, Any]:
        changed.append(1)
        (tmp_path / "made").write_bytes(b"made")
        return {"process": os.getpid(), "threads": torch.get_num_threads()}

    found = apart(work, "Working", 60)
    assert found["process"] != os.getpid()
    assert found["threads"] == 1
    assert changed == []
    assert (tmp_path / "made").read_bytes() == b"made"


def test_what_the_parent_has_thrown_away_is_not_ended_in_the_fork(tmp_path: Path) -> None:
    """A runtime would wait there for threads of its own, which a fork does not have, for ever."""

    class Runtime:
        def __init__(self) -> None:
            self.itself = self  # so that only the collector ends it

        def __del__(self) -> None:
            (tmp_path / str(os.getpid())).touch()

    gc.disable()
    try:
        Runtime()
        assert apart(gc.collect, "Collecting", 60.0) >= 0
        assert list(tmp_path.iterdir()) == []
        assert not gc.isenabled()
    finally:
        gc.enable()
    gc.collect()
    assert [file.name for file in tmp_path.iterdir()] == [str(os.getpid())]


def test_a_fork_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not use it, and what torch's compilers ask of it would fail."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert apart(lambda: [torch.cuda.is_available(), torch.cuda.device_count()], "Working", 60) == [False, 0]
    assert torch.cuda.is_available()


@pytest.mark.parametrize("error", [ConfigError("a"), SignatureError("b"), GateError("c.\nd")], ids=repr)
def test_our_errors_come_back_as_they_are(error: Exception) -> None:
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        apart(work, "Working", 60)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert "in work" in "".join(caught.value.__notes__), "where it was raised is not lost"


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: 1 // 0, "failed with ZeroDivisionError"),
        (lambda: object(), "failed with PydanticSerializationError"),
        (lambda: os._exit(0), "ended its process with the exit status 0"),
        (lambda: os._exit(9), "ended its process with the exit status 9"),
        (lambda: exit(3), "failed with SystemExit: 3"),
        (lambda: os.abort(), r"ended its process by SIGABRT \(at test_apart.py:\d+, in <lambda>\)"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL, as Linux does where memory runs out"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "ended its process by SIGTERM"),
    ],
    ids=["error", "no data", "exit 0", "exit 9", "sys.exit", "abort", "killed", "terminated"],
)
def test_what_ends_it_is_told(work: Callable[[], Any], said: str) -> None:
    with pytest.raises(GateError, match=f"^Working {said}.*, so nothing was published") as caught:
        apart(work, "Working", 60)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", [os.abort, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: None])
def test_it_leaves_no_files(end: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of libraries, too, which are gone before they can tidy up."""

    def work() -> None:
        tempfile.mkdtemp()
        subprocess.run(["mktemp"], check=True)
        end()

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TMPDIR", raising=False)
    with contextlib.suppress(GateError):
        apart(work, "Working", 60)
    assert list(tmp_path.iterdir()) == []


_ON_A_FULL_DISK = """
import pathlib
from shipline.errors import GateError
from shipline.export.apart import apart
try:
    apart(lambda: pathlib.Path("/mnt/made").write_bytes(bytes(1 << 20)), "Working", 60)
except GateError as error:
    print(error)
"""


def test_what_a_full_disk_does_not_take_is_told() -> None:
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=8k none /mnt && exec "$0" "$@"']
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    script = [sys.executable, "-c", _ON_A_FULL_DISK]
    ran = subprocess.run([*mount, *script], env={**os.environ, "TMPDIR": "/mnt"}, check=True, capture_output=True)
    assert b"Working failed with OSError: [Errno 28] No space left on device, so nothing was published" in ran.stdout


def test_it_says_where_it_was_whoever_handles_signals_in_the_parent() -> None:
    """Ray puts handlers of its own in the place of faulthandler's."""
    before = faulthandler.is_enabled()
    faulthandler.enable()
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    try:
        with pytest.raises(GateError, match=r"by SIGABRT \(at test_apart.py:\d+, in <lambda>\)"):
            apart(lambda: os.abort(), "Working", 60.0)
    finally:
        faulthandler.disable()
        if before:
            faulthandler.enable()


def test_what_hangs_is_ended_and_says_where(no_grace: None) -> None:
    with pytest.raises(GateError, match=r"took longer than 0\.2 s \(at test_apart\.py:\d+, in hang\)"):
        apart(hang, "Working", 0.2)


def test_what_hangs_deaf_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, it cannot even say where it is."""
    monkeypatch.setattr(apart_module, "GRACE_S", 0.1)
    with pytest.raises(GateError, match=r"took longer than 0\.1 s, which is the recipe's timeout"):
        apart(lambda: os.kill(os.getpid(), signal.SIGSTOP), "Working", 0.1)


@pytest.mark.parametrize("work", [take_memory, take_tensors])
def test_what_takes_all_memory_gets_no_more_than_is_free(work: Callable[[], None], little_memory: None) -> None:
    with pytest.raises(GateError, match=r"^Working needed more memory than is free here, so nothing was"):
        apart(work, "Working", 60)


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    """As compilers are that AOTInductor starts."""

    def work() -> None:
        if pid := os.fork():
            (tmp_path / "pid").write_text(str(pid))
        else:
            hang()

    apart(work, "Working", 60)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not runs(pid), 10)


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which belongs to whoever adopts orphans."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


def test_an_interrupt_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, which comes while this process waits; the fixture of all tests looks for what is left."""
    fork, forked = os.fork, []
    main = threading.get_ident()

    def forks() -> int:
        pid = fork()
        if pid:
            forked.append(pid)
            threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        return pid

    monkeypatch.setattr(os, "fork", forks)
    with pytest.raises(KeyboardInterrupt):
        apart(hang, "Working", 600)
    with pytest.raises(ProcessLookupError):
        os.kill(forked[0], 0)


def test_nothing_is_forked_where_that_is_not_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart_module.sys, "platform", "darwin")
    assert apart(os.getpid, "Working", 60) == os.getpid()


class Traced(Tiny):
    """Does something when it is traced for ONNX, and nothing in an ordinary call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting():
            self.when_traced()
        return super().forward(x)

    def when_traced(self) -> None: ...


class Hangs(Traced):
    def when_traced(self) -> None:
        faulthandler.dump_traceback_later(0.1, exit=True, file=2)  # the time is over: tests need not wait for it
        hang()


class Aborts(Traced):
    def when_traced(self) -> None:
        os.abort()


class Exits(Traced):
    def when_traced(self) -> None:
        os._exit(0)


class TakesMemory(Traced):
    def when_traced(self) -> None:
        take_memory()


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Hangs, r"took longer than 120 s \(at test_apart\.py:\d+, in hang\)"),
        (Aborts, r"ended its process by SIGABRT \(at test_apart\.py:\d+, in when_traced\)"),
        (Exits, "ended its process with the exit status 0"),
        (TakesMemory, "needed more memory than is free here"),
    ],
)
def test_a_module_that_cannot_stand_being_traced_is_refused(
    module: type[nn.Module], said: str, tmp_path: Path, little_memory: None
) -> None:
    recipe = sl.Recipe(timeout=120)
    with pytest.raises(GateError, match=f"^Converting {module.__name__} to onnx {said}.*, so nothing was published"):
        sl.export(module(), recipe, rows=torch.rand(32, 64), to=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()
