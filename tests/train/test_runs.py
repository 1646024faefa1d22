"""The directory of a run: what lies in it, how it gets its number, what it tells."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from training import Mlp, Scripted, new_trainer, numbers, train_loader, val_loader

from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError
from shipline.lineage import Lineage
from shipline.store import absolute, open_store
from shipline.train import Run
from shipline.train.run import RunDirectory


def test_what_a_run_leaves(url: str) -> None:
    trainer = new_trainer(url, max_epochs=1, name="digits")
    trainer.config = {"trainer": {"max_epochs": 1}}
    run = trainer.fit(Mlp(), train_loader(64), val_loader(32))
    assert run.url == f"{url}/digits/version_0"
    experiment = open_store(f"{url}/digits")
    assert experiment.list() == ["checkpoints.json", "version_0"]
    files = [name for name in experiment.list("version_0") if not name.startswith("git.")]  # if there is a repository
    assert files == [
        "checkpoints", "checkpoints.json", "config.yaml", "environment.json", "hparams.yaml", "metrics.csv", "run.json",
    ]  # fmt: skip
    assert experiment.list("version_0/checkpoints") == ["epoch=0-step=2"]
    assert yaml.safe_load(experiment.read("version_0/config.yaml")) == trainer.config
    described = json.loads(experiment.read("version_0/run.json"))
    assert described["module"] == "training.Mlp"
    assert described["lineage"]["packages"]["torch"] == torch.__version__


def test_a_run_is_named_after_its_module_unless_it_has_a_name(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Scripted(), numbers(1))
    assert run.url == str(tmp_path / "scripted" / "version_0")


@pytest.mark.parametrize("name", ["../digits", "a/b", "", "di gits"])
def test_names_of_runs_that_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no run name"):
        RunDirectory.create(str(tmp_path), name, {})
    assert list(tmp_path.iterdir()) == []


def test_each_run_gets_the_next_number(url: str) -> None:
    assert [RunDirectory.create(url, "digits", {}).version for _ in range(3)] == ["version_0", "version_1", "version_2"]
    assert RunDirectory.create(url, "other", {}).version == "version_0"


def test_a_number_is_never_used_again(tmp_path: Path) -> None:
    """Numbers go on from the greatest, past gaps, and past what is no run."""
    for name in ("version_3", "version_x", "notes", "version_"):
        open_store(str(tmp_path / "digits")).write(f"{name}/x", b"")
    assert RunDirectory.create(str(tmp_path), "digits", {}).version == "version_4"


def test_runs_that_start_at_once_get_different_numbers(url: str) -> None:
    count = 6
    together = threading.Barrier(count)
    versions: list[str] = []

    def create() -> None:
        together.wait(30)
        versions.append(RunDirectory.create(url, "digits", {"who": threading.current_thread().name}).version)

    threads = [threading.Thread(target=create) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [f"version_{n}" for n in range(count)]
    written = {open_store(f"{url}/digits").read(f"version_{n}/run.json") for n in range(count)}
    assert len(written) == count


def test_a_run_that_finds_its_number_taken_takes_the_next(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else takes it between the look and the write."""
    first = RunDirectory.create(url, "digits", {"who": "first"})
    experiment = type(open_store(f"{url}/digits"))
    monkeypatch.setattr(experiment, "list", lambda *_: [])
    second = RunDirectory.create(url, "digits", {"who": "second"})
    monkeypatch.undo()
    assert (first.version, second.version) == ("version_0", "version_1")
    assert json.loads(first.store.read("run.json")) == {"who": "first"}


@pytest.mark.parametrize(
    ("checkpoint", "run"),
    [
        ("runs/digits/version_3/checkpoints/x", ("runs/digits", "version_3")),
        ("/a/b/version_0/checkpoints/x", ("/a/b", "version_0")),
        ("memory://a/b/version_0/checkpoints/x", ("memory://a/b", "version_0")),
        ("runs/digits/checkpoints/x", None),
        ("runs/digits/version_3/x", None),
        ("x", None),
    ],
)
def test_the_run_that_a_checkpoint_lies_in(checkpoint: str, run: tuple[str, str] | None) -> None:
    class Lies:
        store = open_store(checkpoint)

    found = RunDirectory.of(Lies())  # type: ignore[arg-type]
    assert (None if found is None else (found.experiment, found.version)) == run


def test_a_relative_root_is_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run in directories of their own, so it is fixed when the Trainer is made."""
    monkeypatch.chdir(tmp_path)
    trainer = new_trainer("runs", max_epochs=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert trainer.fit(Scripted(), numbers(1)).url == str(tmp_path / "runs" / "scripted" / "version_0")
    assert absolute("s3://bucket/x") == "s3://bucket/x"


def test_a_run_says_what_came_of_it(tmp_path: Path) -> None:
    module, data = Scripted([0.5]), numbers(1)
    run = new_trainer(tmp_path, max_epochs=1).fit(module, data, data)
    assert isinstance(run, Run)
    assert (run.module, run.metrics) == (module, {"score": 0.5})
    assert run.checkpoint.url == run.best_url == run.last_url
    assert run.data.train_dataloader() is data


SECRET = "hunter2"


def test_credentials_in_a_url_are_in_nothing_that_is_shown_or_stored(capsys: pytest.CaptureFixture[str]) -> None:
    root = f"memory://user:{SECRET}@host/runs"
    trainer = new_trainer(root, max_epochs=1, enable_progress_bar=True)
    trainer.config = {"trainer": {"default_root_dir": root}, "import_path": ["/home/me"]}
    run = trainer.fit(Scripted(), numbers(1))
    assert run.checkpoint.manifest.global_step == 1
    assert SECRET not in repr(run) + str(run.checkpoint) + "".join(capsys.readouterr())
    store = open_store(f"{root}/scripted/version_0")
    for key in ("run.json", "config.yaml", "checkpoints.json", "checkpoints/epoch=0-step=1/manifest.json"):
        assert SECRET.encode() not in store.read(key), key
    state = store.list("checkpoints/epoch=0-step=1")[0]
    assert SECRET.encode() not in store.read(f"checkpoints/epoch=0-step=1/{state}/state/state.json")
    manifest = open_checkpoint(f"{root}/scripted/best").manifest
    assert manifest.lineage.config == {"trainer": {"default_root_dir": "memory://***@host/runs"}}


def test_lineage_names_the_repository_of_the_users_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the module's file, not the working directory's."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "users_module.py").write_text("from training import Scripted\n\n\nclass Mine(Scripted):\n    pass\n")

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *arguments], cwd=code, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init")
    git("add", "users_module.py")
    git("commit", "-m", "first")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("users_module", code / "users_module.py")
    assert spec is not None
    assert spec.loader is not None
    users_module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "users_module", users_module)
    spec.loader.exec_module(users_module)

    def lineage() -> Lineage:
        return new_trainer(tmp_path, max_epochs=1).fit(users_module.Mine(), numbers(1)).checkpoint.manifest.lineage

    found = lineage()
    assert (found.git_commit, found.git_dirty) == (git("rev-parse", "HEAD"), False)
    (code / "notes.txt").write_text("not committed")
    assert lineage().git_dirty is True
