"""docs/configuration.md, as it stands there: its files are written, its commands are run, and say what it says."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401 -- the page's module imports it, and it changes the environment
import torch
from command_line import Run

from docs import blocks

PAGE = "configuration"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the page, and the lines that it prints."""
    for block in blocks(PAGE, "console"):
        for text in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *said = text.splitlines()
            yield command, said


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small matrices on busy cores are several times slower with two threads than with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_page(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in [*blocks(PAGE, "python"), *blocks(PAGE, "yaml")]:
        name = text.partition("\n")[0].removeprefix("# ")
        (here / name).write_text(text)
    for command, said in commands():
        line, _, target = command.partition(" > ")
        words = shlex.split(line)
        program = words.index("shipline")
        with monkeypatch.context() as context:
            for variable in words[:program]:
                context.setenv(*variable.split("=", 1))
            outcome = run(*words[program + 1 :])
        wrong = bool(said) and said[0].startswith("shipline train: ")
        assert outcome.code == (2 if wrong else 0), (command, outcome.err)
        for part in said:
            assert part.removesuffix("...") in (outcome.err if wrong else outcome.out), (command, outcome)
        if target:
            (here / target).write_text(outcome.out)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["again", "digits"]
