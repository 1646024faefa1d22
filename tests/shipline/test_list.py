"""`shipline list`: what has a name in settings, with what other packages add."""

from __future__ import annotations

import pytest
from command_line import Run, in_process
from helpers import Install

from shipline.plugins import BUILT_IN, load

PLURALS = {
    "accelerator": "accelerators", "backend": "backends", "callback": "callbacks", "converter": "converters",
    "environment": "environments", "logger": "loggers",
    "pass": "passes", "precision": "precisions", "profiler": "profilers", "step": "steps", "strategy": "strategies",
}  # fmt: skip


def rows(out: str) -> list[list[str]]:
    """The cells of a printed table, its header left out."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line[:1] == "│"]


def test_every_kind_is_listed(run: Run) -> None:
    outcome = run("list")
    assert (outcome.code, outcome.err) == (0, "")
    assert set(PLURALS) == set(BUILT_IN)
    assert [row[0] for row in rows(outcome.out) if row[0]] == sorted(PLURALS.values())
    assert "ddp, ddp_find_unused_parameters_false, ddp_find_unused_parameters_true, fsdp" in outcome.out


@pytest.mark.parametrize("kind", BUILT_IN)
def test_each_has_its_class_and_what_it_does(run: Run, kind: str) -> None:
    outcome = run("list", PLURALS[kind])
    assert (outcome.code, outcome.err) == (0, "")
    assert run("list", kind) == outcome
    found = {name: (path, what) for name, path, what in rows(outcome.out) if name}
    assert set(found) == set(BUILT_IN[kind])
    for name, (path, what) in found.items():
        assert BUILT_IN[kind][name].replace(":", ".").startswith(path)
        assert what
        assert load(kind, name).__doc__.startswith(what)


def test_what_other_packages_add_is_listed_even_where_it_is_broken(install: Install, run: Run) -> None:
    source = 'class Mine:\n    """Does \\x1b[2J it my way.\n\n    More of it.\n    """\n\nclass Silent:\n    pass\n'
    install(
        "[shipline.callback]\nMine = ext_plugins:Mine\nSilent = ext_plugins:Silent\nGone = ext_plugins:Gone\n"
        "Lacking = gcsfs.core:X\n",
        source,
    )
    outcome = run("list", "callbacks")
    assert outcome.code == 0
    found = {name: what for name, _, what in rows(outcome.out)}
    assert found["Mine"] == "Does \\x1b[2J it my way."
    assert found["Silent"] == ""
    assert found["Gone"].startswith("It cannot be imported: AttributeError: module 'ext_plugins' has no")
    assert found["Lacking"].startswith("This needs 'gcsfs', which is not installed. Run: pip install")
    assert "EarlyStopping" in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calbacks"], "There is no list of 'calbacks'. Did you mean 'callbacks'? Known: accelerators, backends, "),
        (["fire"], "There is no list of 'fire'. Known: accelerators, "),
        (["callbacks", "more"], "there is no place for 'more'"),
        (["callbacks", "--knd", "x"], "unknown option --knd."),
    ],
)
def test_a_mistake_is_named(run: Run, arguments: list[str], message: str) -> None:
    run("list", *arguments).refused(2, message)


def test_the_names_need_no_torch() -> None:
    """Kinds are listed where only the contract is installed; and what lacks an extra says which."""
    program = "sys.modules['torch'] = None"
    assert "EarlyStopping" in in_process("list", program=program).out
    outcome = in_process("list", "strategies", program=program)
    assert outcome.code == 0
    assert "'shipline[train]'" in outcome.out
