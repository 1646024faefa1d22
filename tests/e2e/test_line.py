"""The whole line as a user runs it: train, export, serve, predict, with every URL on S3."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, S3_SECRET, free_port, wait_until

import shipline as sl
from shipline.artifact import open_model
from shipline.serve.golden import GoldenRows

SHIPLINE = str(Path(sys.executable).parent / "shipline")

# A user's own file has the name of one of our folders, and holds their module and data.
CONFIG = """
seed_everything: 1
module: {class_path: train.Digits}
data: {class_path: train.DigitsData}
trainer:
  name: mine
  max_epochs: 6
  workers: WORKERS
  default_root_dir: ROOT_DIR
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {monitor: val_acc, mode: max}
"""


def run(*arguments: str, cwd: Path) -> str:
    """Run a command of ours to its end; what it printed."""
    done = subprocess.run([SHIPLINE, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert S3_SECRET not in done.stdout + done.stderr
    return done.stdout


@contextmanager
def serving(url: str, cwd: Path) -> Iterator[str]:
    """`shipline serve` as a process; it must end well when it is told to."""
    port = free_port()
    process = subprocess.Popen(
        [SHIPLINE, "serve", url, "--port", str(port)], cwd=cwd, stderr=subprocess.PIPE, text=True
    )
    address = f"http://127.0.0.1:{port}"
    try:
        with sl.Client(address) as client:
            wait_until(lambda: client.ready() or process.poll() is not None)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert S3_SECRET not in said


def check_golden_rows(address: str, model_url: str, model: str) -> None:
    """Every golden row, over real HTTP, gets the trained module's answer within the stated tolerance."""
    artifact = open_model(model_url).stable()
    rows = GoldenRows(artifact)
    assert rows.count >= 8
    with sl.Client(address) as client:
        outputs = client.infer(model, rows.inputs)
        for name, want in rows.outputs.items():
            assert np.abs(outputs[name] - want).max() <= artifact.manifest.tolerance[name]
        for raw, want in zip(rows.raw, rows.answers, strict=True):
            assert client.predict(model, raw)["label"] == want["label"]


@pytest.mark.ray
def test_everything_on_s3_with_a_users_own_train_py(s3: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text((ROOT / "examples/digits/digits.py").read_text())
    (tmp_path / "mine.yaml").write_text(CONFIG.replace("ROOT_DIR", f"{s3}/runs").replace("WORKERS", "2"))

    said = run("train", "mine.yaml", cwd=tmp_path)
    assert "epoch 6/6" in said
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("train.py", "mine.yaml", "cache")] in (
        [],
        ["__pycache__"],
    )

    said = run(
        "export", f"{s3}/runs/mine/best", "--to", f"{s3}/models/mine", "--run_config", "mine.yaml",
        "--recipe.precision", "int8", "--recipe.min_speedup", "0", cwd=tmp_path,
    )  # fmt: skip
    assert said.count("passed") == 9
    assert "stable 100" in run("inspect", f"{s3}/models/mine", cwd=tmp_path)

    with serving(f"{s3}/models", tmp_path) as address:
        check_golden_rows(address, f"{s3}/models/mine", "mine")
        said = run("predict", address, "mine", str(ROOT / "examples/digits/seven.png"), cwd=tmp_path)
        assert re.fullmatch(r"7  [01]\.\d{3}\n", said)
    manifest = open_model(f"{s3}/models/mine").stable().manifest
    assert manifest.metrics["val_acc"] >= 0.95
    assert manifest.lineage.world_size == 2


def test_a_remote_checkpoint_does_not_choose_code(s3: str, tmp_path: Path) -> None:
    """Its run's configuration is remote, too, so the user has to name the class."""
    (tmp_path / "train.py").write_text((ROOT / "examples/digits/digits.py").read_text())
    (tmp_path / "mine.yaml").write_text(CONFIG.replace("ROOT_DIR", f"{s3}/runs").replace("WORKERS", "1"))
    run("train", "mine.yaml", "--trainer.max_epochs", "1", cwd=tmp_path)
    command = [SHIPLINE, "export", f"{s3}/runs/mine/best", "--to", f"{s3}/models/mine"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "not trusted to choose code. Give the training's file: --run_config" in done.stderr


@pytest.mark.ray
def test_the_demo(tmp_path: Path) -> None:
    """What `make demo` runs: accurate, proved, and it says where the report is."""
    command = [sys.executable, str(ROOT / "examples/digits/demo.py")]
    environment = {**os.environ, "COLUMNS": "160"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {
        name: float(accuracy) for name, accuracy in re.findall(r"│ (module|float32|int8) +│ +([\d.]+) │", done.stdout)
    }
    assert set(rows) == {"module", "float32", "int8"}
    assert rows["module"] >= 0.97
    assert abs(rows["int8"] - rows["module"]) <= 0.005
    assert re.search(r"answer: 6  [01]\.\d{3}", done.stdout)
    report = re.search(r"Report: (\S+)", done.stdout)
    assert report is not None
    assert (tmp_path / report[1]).read_text().startswith("<!doctype html>")
