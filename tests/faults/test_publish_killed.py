"""The process is killed at every step of a publish: readers see the old version or the new one, never a mix."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shipline.artifact import Artifact, open_model

SCRIPT = Path(__file__).parent / "publish_killed.py"


def kill_at(url: str, step: int) -> bool:
    """Publish version 2 and die at the step; whether it did die."""
    done = subprocess.run([sys.executable, str(SCRIPT), url, str(step)], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


def content(artifact: Artifact) -> str:
    """The version, after reading every file of it."""
    version = artifact.manifest.version
    assert artifact.read("model.onnx") == version.encode() * 4000
    assert artifact.read("processing.json") == version.encode() * 600
    return version


def check(url: str, publish: object) -> str:
    """Every committed version is whole, and so is the stable one; then a new attempt succeeds and leaves no orphan."""
    model = open_model(url)
    versions = model.versions()
    assert versions in (["1"], ["1", "2"])
    assert [content(model.open(version)) for version in versions] == versions
    stable = content(model.stable())
    assert stable in versions
    if versions == ["1"]:
        publish(url, "2")  # type: ignore[operator]
    assert content(model.open("2")) == "2"
    assert sorted(name.partition("-")[0] for name in model.store.at("2").list()) == ["data", "manifest.json"]
    return stable


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import publish_killed

    yield publish_killed.publish
    del sys.modules["publish_killed"]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_readers_see_old_or_new(kind: str, request: pytest.FixtureRequest, tmp_path: Path, publish: object) -> None:
    root = str(tmp_path) if kind == "local" else request.getfixturevalue("s3")

    def attempt(step: int) -> str | None:
        url = f"{root}/{step}/m"
        publish(url, "1")  # type: ignore[operator]
        killed = kill_at(url, step)
        stable = check(url, publish)
        return stable if killed else None

    steps = range(70) if kind == "local" else range(12)
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(attempt, steps))
    last = seen.index(None)  # the sweep reaches past the last step, so it covers all of them
    assert last > (20 if kind == "local" else 7)
    assert "1" in seen[:last]
