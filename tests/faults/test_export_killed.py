"""The process is killed in every phase of an export: nothing is visible, a rerun succeeds and sweeps what was left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from small_modules import Digits, Tiny, fit

from shipline.artifact import find_artifacts, open_model
from shipline.errors import NotFoundError
from shipline.store.commit import MANIFEST

SCRIPT = Path(__file__).parent / "export_killed.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script as a module."""
    # torch.export sets this for the rest of the process.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", "/nonexistent"))
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    import export_killed

    yield export_killed
    del sys.modules["export_killed"]


def files(directory: Path) -> set[str]:
    """Every file below a directory, hidden ones too."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_an_export_that_is_killed_shows_nothing_and_the_next_one_succeeds(
    tmp_path: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = fit(Tiny(), Digits(), tmp_path / "runs", epochs=1).checkpoint.url
    phases = [*script.PROVING, *script.FILES, *script.COMMITTING]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), checkpoint, str(tmp_path), *phases],
        capture_output=True, text=True, timeout=120, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(phases), done.stderr

    monkeypatch.setattr(script.exporter, "prove", script.exporter.prove)  # put back at the end
    source = script.source_of(checkpoint)
    proved = script.prove(source)  # what was killed left nothing but files in the store: one proof serves all reruns
    for number, phase in enumerate(phases):
        root = tmp_path / str(number)
        model = open_model(str(root / "m"))
        committed = ["1"] if phase == "before the pointer" else []
        assert model.versions() == committed, phase
        assert model.channels() == {}, phase
        assert bool(files(root)) is (phase not in script.PROVING), phase
        if not committed:
            with pytest.raises(NotFoundError, match="No artifact below"):
                find_artifacts(str(root))
        script.publish(source, proved, str(root / "m"))
        assert model.versions() == [*committed, str(len(committed) + 1)], phase
        assert model.channels()["stable"]["version"] == model.versions()[-1], phase
        expected = {"m/channels.json"}
        for version in model.versions():
            artifact = model.open(version)
            assert all(artifact.read(name) for name in script.FILES), phase
            expected |= {f"m/{version}/{entry.key}" for entry in artifact.manifest.files.values()}
            expected.add(f"m/{version}/{MANIFEST}")
        assert files(root) == expected, phase
