"""KServe's own clients for REST and gRPC, unmodified.

They want protobuf 6 and cannot stand beside ours, so they lie in a folder that their process alone looks into first;
it is made once, and again when kserve_client.txt, which says what is in it, changes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from serving import GRAPHS, calls, publish_all

from shipline.serve.server import BackgroundServer

HERE = Path(__file__).parent
PINS = HERE / "kserve_client.txt"
FOLDER = ROOT / ".venv" / "kserve"
X = np.array([[1, 2, 3, 4], [0.5, -1, 0, 2]], np.float32)
Y = GRAPHS["linear"].function({"x": X})["y"]


@pytest.fixture(scope="module")
def folder() -> Path:
    """Where the clients lie."""
    made, wanted = FOLDER / "made", hashlib.sha256(PINS.read_bytes()).hexdigest()
    if not made.exists() or made.read_text() != wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--no-compile",
            "--target",
            FOLDER,
            "-r",
            PINS,
        ]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if re.search("NewConnectionError|ConnectTimeout|NameResolutionError", done.stderr):
            pytest.skip("pip reaches no registry, so KServe's client cannot be had")
        assert done.returncode == 0, done.stderr
        made.write_text(wanted)
    return FOLDER


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every call gave."""
    repository = tmp_path_factory.mktemp("repository")
    publish_all(repository)
    with BackgroundServer(str(repository), grpc_port=0) as server:
        assert server.grpc_address is not None
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        return calls(HERE / "kserve_calls.py", server.url, server.grpc_address, environment=environment)


@pytest.mark.parametrize("way", ["rest", "grpc"])
def test_server_and_models_are_ready(found: dict[str, Any], way: str) -> None:
    assert all(found[way][name] is True for name in ("live", "ready", "model ready"))
    assert found[way]["stranger ready"] is False
    assert found[way]["wrong model"] == {"rest": 404, "grpc": "NOT_FOUND"}[way]


@pytest.mark.parametrize(("way", "form"), [("rest", "JSON"), ("rest", "binary"), ("grpc", "typed"), ("grpc", "raw")])
def test_infer(found: dict[str, Any], way: str, form: str) -> None:
    np.testing.assert_allclose(found[way][form]["y"], Y, rtol=1e-5)
    assert found[way][form]["model"] == "linear"
    asked = found[way].get(f"{form} asked for")
    if asked is not None:
        assert asked == {"id": "id-7", "model": "masked", "dropped": [[False, True, False]]}


def test_its_first_protocol(found: dict[str, Any]) -> None:
    assert found["rest"]["v1 ready"] is True
    np.testing.assert_allclose(found["rest"]["v1"]["predictions"], Y, rtol=1e-5)
