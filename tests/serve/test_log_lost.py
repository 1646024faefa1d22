"""Who reads the log may stop, leave, or have no room for it: answers go on, and what is dropped is counted (S18)."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import artifacts
import numpy as np
import pytest
from helpers import free_port, wait_until
from serving import GRAPHS, check_error, infer, tensor, web

POISON = {"inputs": [tensor("index", np.array([99]), "INT64")]}  # each leaves some lines of log


@contextlib.contextmanager
def serving_into(log: int | IO[bytes], root: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server that writes its log there."""
    for name in ("linear", "lookup"):
        artifacts.publish(f"{root}/{name}", GRAPHS[name])
    port = free_port()
    command = [sys.executable, "-m", "shipline", "serve", str(root), "--port", str(port)]
    popen = subprocess.Popen(command, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert popen.poll() is None
        with contextlib.suppress(Exception):
            return bool(web.get(f"{url}/v2/health/ready").is_success)
        return False

    try:
        wait_until(ready)
        yield url, popen
    finally:
        popen.kill()
        popen.wait()


def dropped(url: str) -> float:
    found = re.search(r"^shipline_log_lines_dropped_total (\S+)", web.get(f"{url}/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def check_answers(url: str, times: int) -> None:
    for seed in range(times):
        check_error(web.post(f"{url}/v2/models/lookup/infer", json=POISON), 500)
        infer(url, seed=seed)


def test_a_reader_that_stops_and_one_that_is_gone(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    try:
        with serving_into(writes, tmp_path) as (url, popen):
            os.close(writes)
            check_answers(url, 60)  # more than a pipe holds
            assert dropped(url) == 0  # it waits for him
            os.close(reads)
            check_answers(url, 3)
            wait_until(lambda: dropped(url) >= 3)
            popen.terminate()
            assert popen.wait(30) == 0
    finally:
        for end in (reads, writes):
            with contextlib.suppress(OSError):
                os.close(end)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk here that is always full")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full, serving_into(full, tmp_path) as (url, _):
        check_answers(url, 3)
        wait_until(lambda: dropped(url) >= 3)
