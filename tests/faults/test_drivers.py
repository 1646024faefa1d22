"""A driver is killed, and two others want to go on with its run at once."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

DRIVER = """
import sys
from shipline.errors import ConfigError
from shipline.store import open_store
from shipline.train.launch.lease import Lease

print("ready", flush=True)
sys.stdin.readline()
try:
    with Lease(open_store(sys.argv[1])):
        print("owner", flush=True)
        sys.stdin.readline()
except ConfigError as error:
    print(error, flush=True)
"""


@contextlib.contextmanager
def drivers(count: int, run: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that want the run's lease when they are told so; none is left."""
    command = [sys.executable, "-c", DRIVER, str(run)]
    found = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        for _ in range(count)
    ]
    try:
        assert [said(driver) for driver in found] == ["ready"] * count
        yield found
    finally:
        for driver in found:
            driver.kill()
            driver.communicate()


def said(driver: subprocess.Popen[str]) -> str:
    assert driver.stdout is not None
    return driver.stdout.readline().strip()


def go(driver: subprocess.Popen[str]) -> None:
    assert driver.stdin is not None
    driver.stdin.write("\n")


@pytest.mark.parametrize("times", range(3))
def test_of_two_that_take_over_from_a_killed_driver_one_wins(tmp_path: Path, times: int) -> None:
    """T6. The other is told who; and when that has ended as it should, the next one comes in at once."""
    with drivers(1, tmp_path) as [first]:
        go(first)
        assert said(first) == "owner"
        first.kill()
        first.wait()
    with drivers(2, tmp_path) as both:
        for driver in both:
            go(driver)
        answers = {said(driver): driver for driver in both}
        owner = answers.pop("owner")
        [refusal] = answers
        assert f"is being trained by process {owner.pid} on " in refusal
        with drivers(1, tmp_path) as [third]:
            go(owner)
            owner.wait()
            go(third)
            assert said(third) == "owner"
