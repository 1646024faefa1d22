"""What is told of the repository that code comes from, and what is not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shipline import repository
from shipline.repository import look

Git = Callable[..., str]
SECRET = "hunter2hunter2"


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Run git in a fresh repository with two files, at `tmp_path`, that knows nothing of this machine's settings."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)

    def run(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    run("init", "-b", "trunk")
    for name in ("train.py", "aws.pem", "große datei.py"):
        (tmp_path / name).write_text("lr = 1\n")
    run("add", ".")
    run("commit", "-m", "one")
    return run


def test_commit_branch_changes_and_diff(git: Git, tmp_path: Path) -> None:
    found = look(tmp_path)
    assert found is not None
    assert (found.root, found.commit, found.branch) == (tmp_path, git("rev-parse", "HEAD"), "trunk")
    assert (found.changes, found.dirty) == ((), False)
    (tmp_path / "train.py").write_text("lr = 2\n")
    (tmp_path / "new.py").write_text("")
    git("mv", "große datei.py", "small.py")
    found = look(tmp_path)
    assert found is not None
    assert found.dirty
    assert set(found.changes) >= {".M train.py", "? new.py"}
    diff = found.diff(10_000)
    assert diff is not None
    assert "-lr = 1\n+lr = 2\n" in diff
    git("checkout", "--detach")
    assert getattr(look(tmp_path), "branch", "") is None


def test_a_diff_shows_no_credentials_and_is_cut_off(git: Git, tmp_path: Path) -> None:
    hidden = {
        "api_key": f'"{SECRET}"', "password": f"'{SECRET}'", "HF_TOKEN": SECRET, "url": f"'s3://me:{SECRET}@bucket'"
    }  # fmt: skip
    (tmp_path / "train.py").write_text(
        "".join(f"{name} = {value}\n" for name, value in hidden.items()) + "tokens = 3\n"
    )
    (tmp_path / "aws.pem").write_text(SECRET)
    found = look(tmp_path)
    assert found is not None
    diff = found.diff(10_000)
    assert diff is not None
    assert SECRET not in diff
    assert "+api_key = ***\n" in diff
    assert "+tokens = 3" in diff
    short = found.diff(50)
    assert short is not None
    assert short.endswith("\n… cut off after 50 bytes\n")


def test_what_a_run_writes_is_no_change(git: Git, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "run.json").write_text("{}")
    assert getattr(look(tmp_path), "changes", None) == ("? runs/",)
    assert getattr(look(tmp_path, runs), "changes", None) == ()
    assert getattr(look(tmp_path, tmp_path), "changes", None) == ("? runs/",)  # not the whole repository


def test_without_a_repository_a_commit_or_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert look(tmp_path) is None
    subprocess.run(["git", "init"], cwd=tmp_path, capture_output=True, check=True)
    (tmp_path / "x").write_text("")
    found = look(tmp_path)
    assert found is not None
    assert (found.commit, found.changes, found.diff(10)) == (None, ("? x",), None)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setattr(repository, "TIMEOUT_S", 0.05)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert look(tmp_path) is None  # on a file system that hangs
    monkeypatch.setenv("PATH", "")
    assert look(tmp_path) is None
