"""Workers of PyTorch's own process group, without Ray: one process each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_workers(script: Path, count: int, directory: Path) -> list[Any]:
    """Run `script RANK COUNT DIRECTORY` for every rank at once; return what each printed last, as JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(count), str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},  # what torchrun says
        )
        for rank in range(count)
    ]
    ended = []
    try:
        ended = [(worker.communicate(timeout=400), worker.returncode) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for (_, errors), code in ended:
        assert code == 0, errors
    return [json.loads(output.splitlines()[-1]) for (output, _), _ in ended]
