"""`shipline load-test`: what it shows and writes, when it fails, and mistakes that it names."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest
from command_line import Outcome
from predicting import GOOD, predicting
from web_double import double

from shipline.commands import main
from shipline.loadtest.results import RIGHT


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    try:
        code = main(["load-test", *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    return Outcome(code, *capsys.readouterr())


def test_the_command_shows_and_writes(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shipline.commands.console.console._width", 200)
    (tmp_path / "key").write_text("key-1\n")
    figures, drawn = tmp_path / "figures.json", tmp_path / "plot.svg"
    outcome = command(
        capsys, url, "table", "--rate", "40,80", "--seconds", "0.3", "--json", str(figures), "--plot", str(drawn),
        "--api-key-file", str(tmp_path / "key"),
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    first, second = json.loads(figures.read_text())["loads"]
    assert (first["load"], second["load"]) == ("40/s", "80/s")
    assert first["counts"] == {RIGHT: first["sent"]}
    for text in ("40/s", "80/s", "p99.9 ms", "█", f"{second['sent']} right"):
        assert text in outcome.out
    assert drawn.read_text().startswith("<?xml")


def test_the_command_fails_where_an_answer_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    number = itertools.count()
    with double(predicting(lambda asked: (200, {}, b"{}" if next(number) == 2 else GOOD))) as url:
        outcome = command(capsys, url, "m", "--seconds", "0.2", "--connections", "1")
    assert outcome.code == 1
    assert "load-test: 1 of " in outcome.err
    assert "answers were not those of the same rows asked alone" in outcome.err
    number = itertools.count()
    with double(predicting(lambda asked: (503 if next(number) else 200, {}, GOOD))) as url:
        outcome = command(capsys, url, "m", "--seconds", "0.2", "--connections", "1")
    assert outcome.code == 1
    assert "requests was answered rightly" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "fast"], "--rate is 'fast'; give requests a second"),
        (["--rate", "100,0"], "rate is 0; it must be more than 0"),
        (["--seconds", "-1"], "seconds is -1"),
        (["--connections", "0"], "connections is 0"),
        (["--tolerance", "-1"], "tolerance is -1"),
        (["--api-key-file", "none"], "Cannot read the key in 'none'"),
        (["--rows", "none.jsonl"], "'none.jsonl' is neither a file nor a JSON value"),
    ],
)
def test_a_mistake_is_named(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    outcome = command(capsys, "http://127.0.0.1:1", "m", *arguments)
    outcome.refused(2, message)
    command(capsys, "127.0.0.1:1", "m").refused(2, "is no URL of a server; it begins with http://")


def test_a_plot_without_matplotlib_is_refused_before_the_load(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = command(capsys, "http://127.0.0.1:1", "m", "--plot", "a.svg")
    outcome.refused(2, "This needs 'matplotlib', which is not installed. Run: pip install 'shipline[export]'")
