"""A storage that never answers keeps no server from living, and none from ending (S3, S7)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import artifacts
import httpx
import pytest
from helpers import free_port, listens, wait_until
from serving import ANYBODY, infer, web

from shipline.serve.server import Serving


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a good model."""
    artifacts.publish(f"{tmp_path}/models/linear", artifacts.linear())
    return tmp_path / "models"


@pytest.fixture
def silent(repository: Path) -> Iterator[Path]:
    """A file of a model, to be replaced by a pipe that nobody writes into: a storage that never answers."""
    (file,) = Path(artifacts.publish(f"{repository}/silent", artifacts.linear()).url).glob("*/model.onnx")
    yield file
    os.close(os.open(file, os.O_RDWR))  # whoever still reads is let go


def fall_silent(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def test_a_signal_while_a_storage_does_not_answer(repository: Path, silent: Path) -> None:
    """It is alive meanwhile, and not ready; and it ends."""
    fall_silent(silent)
    port = free_port()
    command = [sys.executable, "-m", "shipline", "serve", str(repository), "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(command)
    try:
        wait_until(lambda: listens(port))
        assert web.get(f"http://127.0.0.1:{port}/v2/health/live").status_code == 200
        assert web.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 503
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


def test_a_reload_that_never_ends_does_not_outlast_the_grace(repository: Path, silent: Path) -> None:
    serving_ = Serving(str(repository), port=0, grace_s=1, settings=ANYBODY)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(serving_.run)
        try:
            wait_until(lambda: serving_.ready)
            fall_silent(silent)
            asked = pool.submit(web.post, f"{serving_.address}/v2/repository/models/silent/load")
            wait_until(lambda: "silent" in serving_._app.repository._busy)
            infer(serving_.address)
        finally:
            serving_.stop()
        running.result(timeout=30)
        assert isinstance(asked.exception(), httpx.TransportError) or asked.result().status_code >= 500
