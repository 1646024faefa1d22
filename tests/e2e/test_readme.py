"""What the README says works, as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import artifacts
import pytest
from helpers import ROOT, free_port
from test_line import SHIPLINE, run, serving

import shipline as sl
from shipline.commands import main

pytestmark = pytest.mark.timeout(900)  # the first test waits for a training and several exports

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def block(language: str, word: str) -> str:
    """The code block that has the word in it."""
    return next(text for text in blocks(language) if word in text)


def commands(word: str) -> list[str]:
    """The commands of a shell block, without comments."""
    return [line.partition("   #")[0].strip() for line in block("sh", word).splitlines()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the examples, in which the README's training and exports were run."""
    where = tmp_path_factory.mktemp("readme")
    (where / "examples").symlink_to(ROOT / "examples")
    (where / "theirs.onnx").write_bytes(artifacts.linear().model)
    train, *exports, foreign, inspect = commands("shipline train")[:6]
    # The latency of a tiny graph must not decide on a busy machine.
    run(*train.split()[1:], cwd=where)
    for line in (*(f"{export} --recipe.min_speedup 0" for export in exports), foreign, inspect):
        run_here(*line.split()[1:], cwd=where)
    return where


def run_here(*arguments: str, cwd: Path) -> None:
    """Run a command of ours in this process: each other one would import torch and scikit-learn anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "path", list(sys.path))  # the directory of a run's module is added to it
        assert main(arguments) == 0
    sys.modules.pop("digits", None)


@pytest.fixture
def server(workplace: Path) -> Iterator[str]:
    with serving("models", workplace) as address:
        yield address


def test_the_commands_are_all_there_are() -> None:
    assert [line.split()[1] for line in commands("shipline train")] == [
        "train",
        "export",
        "export",
        "export",
        "import",
        "inspect",
        "serve",
        "predict",
        "load-test",
        "up",
    ]


def test_the_curl_lines(server: str, workplace: Path) -> None:
    ready, predict, infer, metadata, metrics = (
        subprocess.run(
            ["bash", "-c", line.replace("http://127.0.0.1:8000", server)],
            cwd=workplace,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for line in commands("curl")
    )
    assert json.loads(ready) == {"ready": True}
    assert json.loads(predict)["label"] == "7"
    logits = json.loads(infer)["outputs"][0]["data"]
    assert logits.index(max(logits)) == 7
    assert json.loads(metadata)["parameters"]["lineage"]["seed"] == 0
    assert 'shipline_model_ready{model="digits",version="3"} 1.0' in metrics


def test_the_predict_line(server: str, workplace: Path) -> None:
    predict = next(line for line in commands("shipline train") if "predict" in line).replace(
        "http://127.0.0.1:8000", server
    )
    assert re.fullmatch(r"7  [01]\.\d{3}\n", run(*predict.split()[1:], cwd=workplace))


def test_the_load_test_line(server: str, workplace: Path) -> None:
    load = next(line for line in commands("shipline train") if "load-test" in line)
    shown = run(*load.replace("http://127.0.0.1:8000", server).split()[1:], "--seconds", "1", cwd=workplace)
    assert "100/s" in shown
    assert "wrong" not in shown


def test_the_triton_client(server: str) -> None:
    program = block("python", "tritonclient").replace("127.0.0.1:8000", server.removeprefix("http://"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in "0123456789"


def test_the_first_own_model(tmp_path: Path) -> None:
    program = block("python", "class Tumour(")
    body = program[program.index("class Tumours") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
    (tmp_path / "tumours.py").write_text(program)
    done = subprocess.run([sys.executable, "tumours.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    row = "from tumours_data import rows; import json; print(json.dumps(rows[0]))"
    (tmp_path / "tumours_data.py").write_text(program[: program.index("class Tumours")])
    found = subprocess.run([sys.executable, "-c", row], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    with serving("models", tmp_path) as address, sl.Client(address) as client:
        assert client.predict("tumours", json.loads(found))["label"] == "malignant"
        assert client.metadata("tumours")["parameters"]["metrics"]["val_acc"] > 0.9


def test_up_serves_what_the_file_says(tmp_path: Path) -> None:
    """`shipline up` ends in a server; one process here, to leave Ray to the demo's test."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    up = next(line for line in commands("shipline train") if line.startswith("shipline up"))
    port = free_port()
    options = ["--train.trainer.workers", "1", "--export.recipe.min_speedup", "0", "--serve.port", str(port)]
    process = subprocess.Popen(
        [SHIPLINE, *up.split()[1:], *options], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said.append(line)
            if "is ready" in line:
                break
        with sl.Client(f"http://127.0.0.1:{port}") as client:
            assert client.predict("digits", tmp_path / "examples/digits/seven.png")["label"] == "7", "".join(said)
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0
