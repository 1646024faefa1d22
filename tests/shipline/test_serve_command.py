"""`shipline serve` that cannot begin: mistakes, a port that is taken, nothing to serve, and what is damaged."""

from __future__ import annotations

import socket
from pathlib import Path

import artifacts
import pytest
from command_line import Run, in_process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "What to serve? Give a URL first, such as: shipline serve s3://bucket/models --port 8000"),
        (["models", "--prot", "1"], "unknown option --prot. Did you mean --port?"),
        (["models", "--port", "http"], "--port: expected int, got 'http'."),
        (["models", "more"], "there is no place for 'more': options begin with --."),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_a_mistake_in_a_serve_is_named(run: Run, arguments: list[str], message: str) -> None:
    run("serve", *arguments).refused(2, message)


@pytest.mark.usefixtures("unchanged")
def test_a_port_that_is_taken_or_does_not_exist_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        in_process("serve", "models", "--port", str(port)).refused(
            1, f"Cannot listen on 127.0.0.1:{port}: Address already in use. Stop what uses the port, or choose another."
        )
    in_process("serve", "models", "--port", "65536").refused(2, "port is 65536; choose one from 0 to 65535.")


@pytest.mark.usefixtures("unchanged")
def test_serving_nothing_ends() -> None:
    outcome = in_process("serve", "nothing", "--port", "0")
    assert outcome.code == 1
    assert outcome.err.endswith(
        "shipline serve: No artifact below nothing. Give a repository, a model or a version; "
        "`shipline export` makes one.\n"
    )
    assert "Traceback" not in outcome.err


def test_serving_a_damaged_artifact_ends(here: Path) -> None:
    artifact = artifacts.publish("models/m", artifacts.linear())
    path = Path(artifact.url) / artifact.manifest.files["model.onnx"].key
    path.write_bytes(path.read_bytes()[:-1])
    outcome = in_process("serve", "models", "--port", "0")
    assert outcome.code == 1
    assert "its manifest says" in outcome.err.splitlines()[-1]
    assert "do not use it, publish again" in outcome.err.splitlines()[-1]
