"""The head of a Ray cluster with a job server, as the operator of Kubernetes starts one; it wants a token."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from helpers import free_port, wait_until


@dataclass(frozen=True)
class Head:
    """A head on the loopback.

    Args:
        address: of its job server.
        health: of what tells whether it is well.
        environment: for those who are to be let in.
    """

    address: str
    health: str
    environment: dict[str, str]


@contextlib.contextmanager
def ray_head(cpus: int = 2) -> Iterator[Head]:
    """Start a head; when it is left, all of its processes are gone."""
    token, port, health = secrets.token_hex(32), free_port(), free_port()
    environment = {**os.environ, "RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as session:  # sockets need a short path
        start = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--num-cpus={cpus}", "--port=0"]
        start += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
        start += [f"--dashboard-agent-listen-port={health}", f"--ray-client-server-port={free_port()}"]
        start += [
            "--min-worker-port=0",
            "--max-worker-port=0",
            f"--temp-dir={session}",
            "--object-store-memory=80000000",
        ]
        log = Path(session, "start.log")
        with log.open("wb") as output:
            head = subprocess.Popen(
                start, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: _answers(head, address, token, log), 90)
            yield Head(address, f"http://127.0.0.1:{health}", environment)
        finally:
            _end(head)


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and all that it has started: some of it is in process groups of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        for process in psutil.wait_procs(started, 5)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, 30)
    head.kill()
    head.wait()


def _answers(head: subprocess.Popen[bytes], address: str, token: str, log: Path) -> bool:
    assert head.poll() is None, log.read_text()
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{address}/api/version", headers={"Authorization": f"Bearer {token}"}).is_success
    return False
