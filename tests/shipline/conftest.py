"""Fixtures for the tests of the command line and of configurations."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import TINY, TRAIN, UP, Outcome, Run, files

from shipline.commands import console as console_module, main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what is imported from it is forgotten at the end."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield directory
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def unchanged(here: Path) -> Iterator[None]:
    """A working directory with a module and its settings; fail if the test leaves, changes or deletes a file there."""
    (here / "tiny.py").write_text(TINY)
    (here / "train.yaml").write_text(TRAIN)
    (here / "up.yaml").write_text(UP)
    before = files(here)
    yield
    assert files(here) == before


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process."""
    monkeypatch.setattr(console_module.console, "_width", 200)

    def command(*arguments: str) -> Outcome:
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return command
