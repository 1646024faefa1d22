"""What several tests need."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
#: Installs a package with these entry points, whose module `ext_plugins` has this source.
Install = Callable[[str, str], None]
S3_SECRET = "planted-secret-9f2c"  # searched for in whatever is printed or stored


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Poll until the condition holds; for processes that have no other way to tell."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def listens(port: int) -> bool:
    """Whether somebody accepts connections on the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def children() -> set[int]:
    """The process ids of this process's children."""
    tasks = Path(f"/proc/{os.getpid()}/task")
    if not tasks.exists():
        return set()
    return {int(pid) for task in tasks.iterdir() for pid in _read(task / "children").split()}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def found_by(script: Path, root: Path) -> dict[str, Any]:
    """Run a script that writes what it has found to `found.json` in a folder; return that."""
    command = [sys.executable, "-W", "ignore", str(script), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    print(done.stderr[-20_000:])
    found: dict[str, Any] = json.loads((root / "found.json").read_text())
    return found
