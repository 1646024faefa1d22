"""Lineage: which code, data and settings made something, without anybody's credentials."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shipline.checkpoint import CheckpointManifest
from shipline.lineage import Lineage, describe_code, publishable, without_secrets
from shipline.store.commit import seal, unseal

SECRET = "hunter2"
Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Run git in a fresh repository with one commit, at `tmp_path`, that knows nothing of this machine's settings."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)

    def run(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    run("init")
    (tmp_path / "train.py").write_text("lr = 1\n")
    run("add", ".")
    run("commit", "-m", "one")
    return run


def test_a_clean_repository_gives_its_commit(git: Git, tmp_path: Path) -> None:
    found = describe_code(tmp_path)
    assert found["git_commit"] == git("rev-parse", "HEAD")
    assert len(found["git_commit"]) == 40
    assert found["git_dirty"] is False


def test_a_directory_below_belongs_to_its_repository(git: Git, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    assert describe_code(tmp_path / "src")["git_commit"] == git("rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["train.py", "new.py"], ids=["changed", "untracked"])
def test_a_file_that_differs_makes_it_dirty(git: Git, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("lr = 2\n")
    found = describe_code(tmp_path)
    assert (found["git_commit"], found["git_dirty"]) == (git("rev-parse", "HEAD"), True)


def test_an_ignored_file_does_not_make_it_dirty(git: Git, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("runs/\n.gitignore\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").write_text("")
    assert describe_code(tmp_path)["git_dirty"] is False


def test_a_repository_without_a_commit_has_none(tmp_path: Path, git: Git) -> None:
    (tmp_path / "empty").mkdir()
    git("init", "empty")
    assert describe_code(tmp_path / "empty")["git_commit"] is None


def test_outside_of_a_repository_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = describe_code(tmp_path)
    assert (found["git_commit"], found["git_dirty"]) == (None, None)


@pytest.mark.parametrize("directory", [Path("no/such/directory"), None], ids=["no directory", "no git"])
def test_without_git_nothing_is_claimed(
    directory: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if directory is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    found = describe_code(directory)
    assert (found["git_commit"], found["git_dirty"]) == (None, None)


def test_versions_are_those_of_what_is_installed() -> None:
    import numpy

    packages = describe_code()["packages"]
    assert packages["numpy"] == numpy.__version__
    assert "shipline" in packages
    assert "pytest" not in packages


def test_what_is_described_fits_a_lineage() -> None:
    lineage = Lineage(**describe_code(), config={"a": [1, None]}, seed=0)
    assert Lineage.model_validate_json(lineage.model_dump_json()) == lineage
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Lineage(git_comit="x")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (f"s3://key:{SECRET}@bucket/x", "s3://***@bucket/x"),
        (f"postgres://user:{SECRET}@{SECRET}@host/x", "postgres://***@host/x"),
        (f"https://{SECRET}@host", "https://***@host"),
        (f"https://host/x?a=1&token={SECRET}", "https://host/x?a=1&token=***"),
        (f"https://host/x?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
         "https://host/x?X-Amz-Credential=***&X-Amz-Signature=***"),
        (f"az://container/x?sv=1&sig={SECRET}", "az://container/x?sv=1&sig=***"),
        (f"two: s3://a:{SECRET}@b and gs://c:{SECRET}@d", "two: s3://***@b and gs://***@d"),
        ("https://host?email=a@b", "https://host?email=a@b"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("write to a@b.example", "write to a@b.example"),
    ],
)  # fmt: skip
def test_credentials_in_urls_are_removed(given: str, kept: str) -> None:
    assert without_secrets(given) == kept
    config = {"data": {"init_args": {"urls": [given, (given,)], "path": Path("x")}}}
    assert without_secrets(config) == {"data": {"init_args": {"urls": [kept, [kept]], "path": "x"}}}


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "text", [], {}, {"a": [{"b": None}]}])
def test_plain_data_stays_as_it_is(value: Any) -> None:
    assert without_secrets(value) == value
    assert type(without_secrets(value)) is type(value)


@pytest.mark.parametrize(
    ("value", "text"), [(float("inf"), "inf"), (float("-inf"), "-inf"), (float("nan"), "nan"), (Path("a/b"), "a/b")]
)
def test_what_json_cannot_hold_becomes_text(value: Any, text: str) -> None:
    """`gradient_clip: .inf` is a fine setting, and must not fail the commit of the checkpoint."""
    config = without_secrets({"x": value, 3: [value]})
    assert config == {"x": text, "3": [text]}
    manifest = CheckpointManifest(module="m.M", epoch=0, global_step=1, lineage=Lineage(config=config))
    sealed, data = seal(manifest)
    assert unseal(data, CheckpointManifest, "here") == sealed


def test_a_configuration_travels_without_what_only_this_machine_has() -> None:
    config = {
        "import_path": ["/home/me"],
        "data": {"init_args": {"roots": ["/home/me/scans/", "~/more", "scans"]}},
        "trainer": {"default_root_dir": f"s3://a:{SECRET}@b"},
    }
    kept = publishable(config)
    assert kept == {
        "data": {"init_args": {"roots": [".../scans", ".../more", "scans"]}},
        "trainer": {"default_root_dir": "s3://***@b"},
    }
    assert "import_path" in config
    json.dumps(kept, allow_nan=False)
