"""Peers of the export: each installed in a folder of its own, over .venv, and run in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent / "peers"
TIMEOUT_S = 600


def pinned() -> dict[str, list[str]]:
    """What each peer needs beyond what is in .venv, by its name; its own package is the first."""
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(":", 1) for line in lines if line and not line.startswith("#")]
    return {name: packages.split() for name, packages in pairs}


def install(name: str, to: Path) -> str:
    """Install a peer into a folder, where it is not there yet; return why that failed, if it did."""
    if to.exists():
        return ""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(to), *pinned()[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    shutil.rmtree(to, ignore_errors=True)  # else the next run would take what is there for all of it
    return f"pip: {done.stderr.strip()[-200:]}"


def make(name: str, packages: Path, model: Path, *, transformer: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """Let a peer make its files of a model's float32 graph; return them by the way, and the reasons of what failed."""
    to = model / name
    to.mkdir()
    command = [sys.executable, str(HERE / f"with_{name}.py"), str(model), str(to)]
    kind = "transformer" if transformer else "other"
    environment = {**os.environ, "PYTHONPATH": str(packages), "OLIVE_DISABLE_TELEMETRY": "1"}
    try:
        done = subprocess.run(
            [*command, kind], env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {}, {"all": f"took longer than {TIMEOUT_S} s"}
    files = {file.stem: file for ending in ("*.onnx", "*.xml") for file in to.glob(ending) if file.stem != "augmented"}
    reasons = {file.stem: file.read_text() for file in to.glob("*.error")}
    if done.returncode and not reasons:
        reasons["all"] = " ".join(done.stderr.strip().splitlines()[-1:])[:300]
    return files, reasons
