"""The faulty backend, where it has a process of its own."""

from __future__ import annotations

from pathlib import Path

import artifacts
import numpy as np
import pytest
from helpers import ROOT

from shipline import plugins

SUPPORT = str(ROOT / "tests" / "support")
TARGET = "faulty:FaultyBackend"


def name_faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process of the backend find the faulty one, and artifacts name it."""
    monkeypatch.setenv("PYTHONPATH", SUPPORT)
    monkeypatch.setitem(plugins.BUILT_IN["backend"], "faulty", TARGET)


def open_gate(gate: Path) -> None:
    """Let one pass, as soon as it is there."""
    gate.write_bytes(b"x")


def row(*values: float) -> artifacts.Arrays:
    return {"x": np.array(values, np.float32)[:, None]}
