"""What the command line shows of the package's log, and what the package does by itself: nothing."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shipline.commands.logs import as_it_was, log_to_terminal
from shipline.errors import ConfigError

SECRET = "hunter2"
package = logging.getLogger("shipline")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The package's logger is as it was afterwards."""
    before = package.level, list(package.handlers)
    with as_it_was():
        yield
    assert (package.level, package.handlers) == before


@pytest.mark.parametrize(
    ("arguments", "variable", "level"),
    [
        ([], None, logging.INFO),
        ([], "ERROR", logging.ERROR),
        (["--log-level", "debug"], "error", logging.DEBUG),
        (["--log_level=warning"], None, logging.WARNING),
    ],
)
def test_the_level(
    arguments: list[str], variable: str | None, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.delenv("SHIPLINE_LOG_LEVEL", raising=False)
    if variable is not None:
        monkeypatch.setenv("SHIPLINE_LOG_LEVEL", variable)
    assert log_to_terminal(["file.yaml", *arguments, "--x=1"]) == ["file.yaml", "--x=1"]
    assert package.level == level


def test_levels_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--log-level is 'debg'\. Did you mean 'debug'"):
        log_to_terminal(["--log-level", "debg"])
    with pytest.raises(ConfigError, match="--log-level has no value"):
        log_to_terminal(["--log-level"])
    monkeypatch.setenv("SHIPLINE_LOG_LEVEL", "loud")
    with pytest.raises(ConfigError, match="SHIPLINE_LOG_LEVEL is 'loud'"):
        log_to_terminal([])


def test_a_line_without_credentials_and_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_terminal([])
    log_to_terminal([])  # once is enough
    logging.getLogger("shipline.train").warning("at s3://me:%s@bucket/x \x1b[2J", SECRET)
    logging.getLogger("shipline.train").debug("too much")
    logging.getLogger("urllib3").warning("of others")
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert " WARNING at s3://***@bucket/x " in line
    assert "\x1b" not in line


def test_text_from_elsewhere_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in a message, nor in an error below it; whatever ends a line somewhere."""
    forged = "2026-01-01 00:00:00,000 ERROR forged"
    log_to_terminal([])
    for end in ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"):
        logging.getLogger("shipline.serve").warning("model %s", f"a{end}{forged}")
        try:
            raise ValueError(f"why{end}{forged}")
        except ValueError:
            logging.getLogger("shipline.serve").exception("failed")
        message, *error = capsys.readouterr().err.splitlines()
        assert message.endswith(forged)
        assert error[0].endswith("ERROR failed")
        assert all(line.startswith("  ") for line in error[1:])
        assert any(forged in line for line in error[1:])


def test_the_package_prints_nothing_by_itself_and_leaves_the_root_logger() -> None:
    code = (
        "import logging, shipline\n"
        "logging.getLogger('shipline.x').warning('unheard')\n"
        "assert logging.root.handlers == [] and logging.root.level == logging.WARNING\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_a_line_of_json_for_each_record(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is in it: it starts no second line, moves no cursor, and shows no password."""
    monkeypatch.setenv("SHIPLINE_LOG_FORMAT", "json")
    with as_it_was():
        logging.getLogger("shipline").handlers.clear()
        log_to_terminal([])
        logger = logging.getLogger("shipline.serve")
        logger.info("one\n2026-01-01 ERROR \x1b[31mforged %s", "s3://user:secret@bucket/x")
        try:
            raise ValueError("why\nso")
        except ValueError:
            logger.exception("failed")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert set(first) == {"time", "level", "logger", "message"}
    assert (first["level"], first["logger"]) == ("info", "shipline.serve")
    assert first["message"] == "one\n2026-01-01 ERROR \x1b[31mforged s3://***@bucket/x"
    assert second["message"] == "failed"
    assert second["error"].endswith("ValueError: why\nso")


def test_an_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIPLINE_LOG_FORMAT", "xml")
    with as_it_was(), pytest.raises(ConfigError, match=r"SHIPLINE_LOG_FORMAT is 'xml'\. Known: text, json"):
        log_to_terminal([])
