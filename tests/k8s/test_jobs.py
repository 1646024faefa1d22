"""Jobs on a real head, which starts for all of these tests once: the manifests' own, and those of `train --submit`."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from helpers import ROOT
from ray_head import Head, ray_head

from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError

from .manifests import environment, render
from .ray_rules import clusters

pytestmark = pytest.mark.ray

TINY = """
import torch
from torch.utils.data import DataLoader, TensorDataset
import shipline as sl

class Tiny(sl.Module):
    def __init__(self, width: int = 4):
        if not width:
            raise ValueError(f"width is {width}.")
        super().__init__()
        self.linear = torch.nn.Linear(width, 2)

    def training_step(self, batch, batch_idx):
        return self.linear(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(sl.DataModule):
    def __init__(self, rows: int = 8):
        self.rows = rows

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(self.rows, 4)), 4)
"""
SETTINGS = """
module: {class_path: tiny.Tiny}
data: {class_path: tiny.Data}
"""
# Make standard input the terminal that sends Ctrl-C.
ITS_OWN = "import os, sys, fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"

SHIPLINE = str(Path(sys.executable).with_name("shipline"))
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as started:
        yield started


@pytest.fixture(scope="module")
def ray_imported() -> None:
    """Ray sets a variable when it is imported, and keeps it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.job_submission  # noqa: F401


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with a module that is not installed anywhere, and a password that is nobody's business."""
    where = tmp_path / "work"
    (where / "conf").mkdir(parents=True)
    (where / "conf" / "tiny.py").write_text(TINY)
    (where / "conf" / "tiny.yaml").write_text(SETTINGS)
    (where / ".env").write_text("PASSWORD=planted")
    return where


def words(head: Head, runs: Path, *others: str) -> list[str]:
    return [
        SHIPLINE, "train", "conf/tiny.yaml", "--submit", head.address, "--trainer.default_root_dir", str(runs), *others,
    ]  # fmt: skip


def submitted(head: Head, folder: Path, *others: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(head, folder.parent / "runs", *others), cwd=folder, env=head.environment | variables,
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def test_the_same_command_line_runs_there_and_is_followed(head: Head, folder: Path) -> None:
    done = submitted(head, folder, SHIPLINE_TRAINER__MAX_EPOCHS="3")
    assert done.returncode == 0, done.stdout + done.stderr
    job = re.search(rf"Submitted to {head.address} as (\w+)\.", done.stderr)
    assert job is not None, done.stderr
    assert f"Running entrypoint for job {job[1]}: shipline train conf/tiny.yaml --trainer" in done.stdout
    assert "Best checkpoint: " in done.stdout
    assert open_checkpoint(str(folder.parent / "runs" / "tiny" / "last")).manifest.global_step == 3 * 2
    assert "INFO" not in done.stderr  # what Ray's client tells of itself


def test_a_job_that_fails_ends_as_it_did_with_its_first_cause(head: Head, folder: Path) -> None:
    done = submitted(head, folder, "--module.init_args.width", "0")
    assert done.returncode == 1
    cause = r"^shipline train: \w+ failed with exit code 1: ValueError: width is 0\.$"
    assert re.search(cause, done.stderr, re.MULTILINE), done.stderr


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
def test_nobody_submits_without_the_token(head: Head, ray_imported: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from shipline.train.submission import JobServer

    with pytest.raises(ConfigError, match="wants a token: set RAY_AUTH_TOKEN to it"):
        JobServer(head.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    with pytest.raises(ConfigError, match="refuses the token in RAY_AUTH_TOKEN"):
        JobServer(head.address)


def test_ctrl_c_asks_and_a_job_that_is_stopped_saves_itself(head: Head, folder: Path) -> None:
    long = ["--trainer.max_epochs", "1000000", "--data.init_args.rows", "4000", "--trainer.name", "long"]
    command = words(head, folder.parent / "runs", *long)
    with terminal(command, folder, head.environment) as (screen, process):
        until(screen, "epoch ")
        os.write(screen, b"\x03")
        until(screen, "[s]top it, [l]eave it running, or go on [f]ollowing? ")
        os.write(screen, b"f\n")
        until(screen, "epoch ")
        os.write(screen, b"\x03")
        until(screen, "ollowing? ")
        os.write(screen, b"s\n")
        said = until(screen, "was stopped.")
        assert process.wait(30) == 143
    assert "Told to end; saved as" in said
    assert open_checkpoint(str(folder.parent / "runs" / "long" / "last")).manifest.global_step > 0


@contextlib.contextmanager
def terminal(command: list[str], cwd: Path, env: dict[str, str]) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a command in a terminal of its own, whose Ctrl-C it gets."""
    screen, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ITS_OWN, *command], cwd=cwd, env=env,
        stdin=end, stdout=end, stderr=end, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    try:
        yield screen, process
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def until(screen: int, words: str) -> str:
    """Read what is shown until these words are."""
    shown = ""
    while words not in shown:
        try:
            shown += os.read(screen, 4096).decode(errors="replace")
        except OSError:  # the command has ended
            pytest.fail(f"{words!r} was not shown, but this: {shown}")
    return shown


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders the manifests, is not installed")
def test_the_job_of_the_manifests_trains_and_leaves_a_checkpoint(head: Head, tmp_path: Path) -> None:
    """Its command, sent as the operator's pod sends it, with the variables of its head; paths are of this machine."""
    manifests = render(ROOT / "k8s" / "overlays" / "train-cpu")
    (cluster,) = clusters(manifests)
    here = {"/opt/shipline": str(ROOT), "/runs": str(tmp_path / "runs"), "/tmp/cache": str(tmp_path / "cache")}
    given = {name: value for name, value in environment(cluster.head.main, manifests).items() if value is not None}
    variables = {name: here.get(value, value) for name, value in given.items() if not name.startswith("RAY_AUTH")}
    variables |= {"SHIPLINE_TRAINER__MAX_EPOCHS": "2"}
    entrypoint = cluster.owner["spec"]["entrypoint"].replace("/opt/shipline", here["/opt/shipline"])  # for a shell
    submit = [RAY, "job", "submit", "--address", head.address, "--submission-id", "manifest"]
    submit += ["--runtime-env-json", json.dumps({"env_vars": variables}), "--", *shlex.split(entrypoint)]
    done = subprocess.run(submit, env=head.environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    checkpoint = open_checkpoint(f"{here['/runs']}/digits/last")
    assert checkpoint.manifest.metrics["val_acc"] > 0.5
    assert checkpoint.manifest.lineage.world_size == 2

    # The kubelet has no token.
    (probe,) = {json.dumps(pod.main["livenessProbe"]["httpGet"]) for _, pod in cluster.nodes}
    assert httpx.get(head.health + json.loads(probe)["path"]).is_success
    assert httpx.get(f"{head.health}/api/job_agent/jobs/manifest/logs").status_code == httpx.codes.UNAUTHORIZED
