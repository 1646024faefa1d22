"""`shipline train --submit`: the same command line as a job of a Ray cluster, with the working directory's code."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from shipline.commands.folder import pack
from shipline.config import Sources, option_names, variables
from shipline.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from shipline.train.submission import Job

_OPTIONS = ("submit", "submit_exclude")
_QUESTION = "\n{name} is still running. [s]top it, [l]eave it running, or go on [f]ollowing? "


def add_submit_options(parser: ArgumentParser) -> None:
    """Add `--submit` and what goes with it."""
    parser.add_argument(
        "--submit", type=str | None, default=None,
        help="Address of a Ray cluster's dashboard, such as http://head:8265: train there, with the files of the "
        "working directory, and follow what the job says. The token of the cluster is RAY_AUTH_TOKEN.",
    )  # fmt: skip
    parser.add_argument(
        "--submit_exclude", type=list[str], default=[],
        help="Patterns of files and folders that are not sent, such as '[data, *.csv]'.",
    )  # fmt: skip


def taken(settings: Namespace) -> tuple[str | None, list[str]]:
    """Take these options out of the settings: they are not the run's. Returns the address, and the patterns."""
    address, excludes = (settings.pop(name) for name in _OPTIONS)
    return address, list(excludes)


def submit(
    address: str, excludes: Sequence[str], parser: ArgumentParser, settings: Namespace, sources: Sources
) -> None:
    """Train there, and end as the job ends.

    Raises:
        ConfigError: something would not be found there: a file, a module, or after the job its results.
        TrainingError: the job failed, with its exit code; or nobody answers.
    """
    from shipline.train.submission import JobServer

    _check_results(settings.trainer.default_root_dir)
    command = _command(sources, Path.cwd())
    given = {each.name: each.value for each in variables(sources.environment, option_names(parser))}
    environment = {name: value for name, value in given.items() if name != "SHIPLINE_SUBMIT"}
    server = JobServer(address)
    with tempfile.TemporaryDirectory(prefix="shipline-submit-") as scratch:
        archive = Path(scratch, "code.zip")
        pack(Path.cwd(), excludes, archive)
        job = server.submit(command, archive, environment, _resources(settings.trainer))
    _say(f"Submitted to {server.address} as {job.name}.")
    _end_as(job)


def _check_results(root: str | None) -> None:
    """The job's working directory goes with the job."""
    if root is None or not ("://" in root or Path(root).is_absolute()) or root.startswith("memory:"):
        raise ConfigError(
            f"trainer.default_root_dir is {root or 'runs'!r}, which would be lost with the job's copy of your files. "
            "Set --trainer.default_root_dir to a store, such as s3://bucket/runs, or to a path that all nodes share."
        )


def _command(sources: Sources, folder: Path) -> str:
    """The command line as it is to be read there: files relative to the working directory, without `--submit`."""
    for directory in sources.directories:
        _below(directory, folder, "import_path, or the folder of a configuration file,")
    files = [
        file.name if file.path is None else _below(file.path, folder, "The configuration file")
        for file in sources.files
    ]
    words = ["shipline", "train", *files[:1]]
    words += [f"--config={file}" for file in files[1:]]
    words += _without(sources.options)
    if any(name in file.content for file in sources.files for name in _OPTIONS):
        words.append("--submit=null")
    level = logging.getLogger("shipline").level
    if level not in (logging.NOTSET, logging.INFO):
        words.append(f"--log-level={logging.getLevelName(level).lower()}")
    return shlex.join(words)


def _below(path: Path, folder: Path, what: str) -> str:
    absolute = folder / path
    try:
        return Path(os.path.normpath(absolute)).relative_to(folder).as_posix()
    except ValueError:
        raise ConfigError(
            f"{what} {str(path)!r} is outside of {folder}, whose files are sent with the job: run the command in a "
            "folder that holds both."
        ) from None


def _without(options: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in options:
        name, equals, _ = word.removeprefix("--").partition("=")
        ours = word.startswith("--") and name.rstrip("+") in _OPTIONS
        if not ours and not skip:
            kept.append(word)
        skip = ours and not equals
    return kept


def _resources(trainer: Any) -> dict[str, float]:
    """One process trains in the job itself, which must then be where there is room; workers find their own."""
    if trainer.workers != 1:
        return {}
    return {"CPU": 1, "GPU": 1} if trainer.accelerator in ("gpu", "cuda") else {"CPU": 1}


def _end_as(job: Job) -> None:
    while True:
        try:
            outcome = job.follow(_show)
        except KeyboardInterrupt:
            if _decided(job):
                raise
            continue
        break
    if outcome.status == "STOPPED":
        _say(f"{job.name} was stopped.")
        raise SystemExit(outcome.code)
    if outcome.code:
        error = TrainingError(f"{job.name} failed with exit code {outcome.code}: {outcome.cause}")
        error.exit_code = outcome.code
        raise error


def _decided(job: Job) -> bool:
    """Ask what becomes of the job; whether that ends this command."""
    answer = _answer(job)
    if answer.startswith("f"):
        return False
    if answer.startswith("s"):
        job.stop()
        _say(f"Stopping {job.name}; it has a minute to save itself.")
        return False
    _say(f"{job.name} is left running. {job.how_to_follow}")
    return True


def _answer(job: Job) -> str:
    """What the user wants; where there is nobody to ask, or no answer, nothing is done to the job."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "leave"
    try:
        sys.stderr.write(_QUESTION.format(name=job.name))
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower()
    except KeyboardInterrupt:
        return "leave"


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
