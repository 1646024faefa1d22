"""`shipline serve` as a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from helpers import free_port, wait_until
from serving import web


@dataclass
class Process:
    """A running server, its URL, and the file that it logs to."""

    popen: subprocess.Popen[bytes]
    url: str
    log: Path

    def ready(self) -> bool:
        """Whether it takes traffic; fails when it has ended."""
        assert self.popen.poll() is None, self.log.read_text()
        try:
            return web.get(f"{self.url}/v2/health/ready").is_success
        except httpx.HTTPError:
            return False


@contextlib.contextmanager
def serving(
    target: str | Path, log: Path, *options: str, environment: dict[str, str] | None = None
) -> Iterator[Process]:
    """Run `shipline serve` until it is ready, and kill it at the end if the test did not stop it."""
    port = free_port()
    command = [sys.executable, "-W", "error", "-m", "shipline", "serve", str(target), "--port", str(port), *options]
    with log.open("wb") as output:
        popen = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    process = Process(popen, f"http://127.0.0.1:{port}", log)
    try:
        wait_until(process.ready)
        yield process
    finally:
        popen.kill()
        popen.wait()


def serve_fails(*arguments: str) -> tuple[int, str]:
    """Run a `shipline serve` that must end by itself; its exit code, and what it said."""
    command = [sys.executable, "-W", "error", "-m", "shipline", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr
