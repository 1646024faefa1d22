"""Fixtures for all tests: a real S3 API, and a watch over what a test leaves behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers import S3_SECRET, Install, children, free_port, listens, wait_until
from hypothesis import settings

from shipline import plugins

# The parts, and torch.export, set these for the rest of the process; set here, so that no test seems to leave them.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "torchinductor_tests"))
# For torch, here and in what is started: small matrices on busy cores are several times slower with two threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a shell starts in the background ignores Ctrl-C, and so does what that starts; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What searches remember must not come from, nor get to, those who work here.
_CACHE = tempfile.TemporaryDirectory(prefix="shipline-tests-cache-")  # gone when the interpreter ends
os.environ["SHIPLINE_CACHE_DIR"] = _CACHE.name

# A change is judged by the same examples each time. To look for others: pytest --hypothesis-profile=explore
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile("same")

_SESSION_PROCESSES: set[int] = set()
#: The folders with the longest tests, which several processes begin with, so that they end together.
LONGEST = ("e2e", "faults", "export")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest tests first, where several processes share them."""
    if hasattr(config, "workerinput"):
        folders = {folder: number for number, folder in enumerate(LONGEST)}
        items.sort(key=lambda item: folders.get(item.path.parent.name, len(LONGEST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who gets which tests, where several processes share them."""
    from sharing import Sharing

    return Sharing(config, log)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of an S3 server on this machine."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _SESSION_PROCESSES.add(server.pid)
    try:
        wait_until(lambda: listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh, empty bucket; the environment holds what is needed to reach it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", S3_SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("SHIPLINE_CACHE_DIR", str(tmp_path / "cache"))
    fsspec.filesystem("s3").clear_instance_cache()
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(bucket)
    yield f"s3://{bucket}"
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty directory on each kind of store."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/store"
    return f"{request.getfixturevalue('s3')}/store"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package with these entry points and a module `ext_plugins` of this source; gone at the end."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(entry_points: str, source: str) -> None:
        info = tmp_path / "ext_plugins-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ext-plugins\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        (tmp_path / "ext_plugins.py").write_text(source)
        plugins._declared.cache_clear()

    yield write
    plugins._declared.cache_clear()
    sys.modules.pop("ext_plugins", None)


def root_logger() -> tuple[int, list[logging.Handler]]:
    """Its level, and its handlers but for those of pytest."""
    handlers = [handler for handler in logging.root.handlers if not type(handler).__module__.startswith("_pytest")]
    return logging.root.level, handlers


def new_threads(before: set[threading.Thread]) -> set[str]:
    """The names of those that keep the process from ending, but for the threads of a server's loop.

    A server that a whole file shares starts these when it first needs them; one that is left behind is found by its own
    thread.
    """
    new = set(threading.enumerate()) - before
    return {thread.name for thread in new if not thread.daemon and not thread.name.startswith("uvloop_")}


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves a process, a thread of its own, an environment variable or another root logger."""
    environment, before, threads, logger = dict(os.environ), children(), set(threading.enumerate()), root_logger()
    yield
    wait_until(lambda: not (children() - before - _SESSION_PROCESSES), 10)
    deadline = time.monotonic() + 5  # libraries tell threads to end, and do not wait for them
    while (left := new_threads(threads)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, f"threads left behind: {left}"
    assert root_logger() == logger, "the root logger was changed"
    # PYTEST_CURRENT_TEST changes with every phase.
    after = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    environment.pop("PYTEST_CURRENT_TEST", None)
    assert after == environment, "the environment was changed"
