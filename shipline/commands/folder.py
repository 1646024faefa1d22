"""The user's code as one file, to be sent with a job: what git would keep of a folder, but for the usual rest."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from shipline.errors import ConfigError

LIMIT = 100 * 1024**2  # bytes; what a job server takes, and more than any code has
#: Never sent: what is made by running, and what begins with a dot, such as .git, .venv, and .env with its passwords.
REST = (".*", "__pycache__", "node_modules", "*.egg-info", "runs", "lightning_logs", "mlruns", "wandb")
_DATE = (1980, 1, 1, 0, 0, 0)  # the same for every file: the same code is the same archive, and is not sent twice


def pack(folder: Path, excludes: Sequence[str], archive: Path) -> None:
    """Write the files of a folder into a zip file; patterns such as `data` or `*.csv` leave more of them out.

    Raises:
        ConfigError: there is nothing to send, or too much; the message names the largest files.
    """
    files = sorted(_kept(folder, excludes))
    if not files:
        raise ConfigError(f"There is no file to send in {folder}: run the command in the folder that holds your code.")
    _check_size(folder, files)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in files:
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = (folder / name).stat().st_mode << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            with (folder / name).open("rb") as source, packed.open(entry, "w") as target:
                shutil.copyfileobj(source, target)


def _kept(folder: Path, excludes: Sequence[str]) -> Iterator[str]:
    for name in _known_to_git(folder) or _walked(folder):
        parts = Path(name).parts
        ways = [name, *parts, *("/".join(parts[:depth]) for depth in range(2, len(parts)))]
        if not any(fnmatch.fnmatchcase(way, pattern.rstrip("/")) for way in ways for pattern in (*REST, *excludes)):
            yield name


def _known_to_git(folder: Path) -> list[str]:
    """The files that are tracked, or new and not ignored; none where this is no working tree.

    Raises:
        ConfigError: it is one, and git does not read it: what it ignores, passwords perhaps, would be sent.
    """
    listed = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    environment = {**os.environ, "LC_ALL": "C"}  # its words are looked at
    try:
        done = subprocess.run(listed, capture_output=True, check=False, env=environment)  # noqa: S603 -- no shell, fixed words
    except FileNotFoundError:  # no git on this machine
        return []
    except OSError as error:
        raise _unread(folder, str(error)) from error
    said = os.fsdecode(done.stderr).strip()
    if done.returncode and "not a git repository (or any" not in said:
        raise _unread(folder, said or f"it ended with {done.returncode}")
    names = os.fsdecode(done.stdout).split("\0") if done.returncode == 0 else []
    return [name for name in dict.fromkeys(names) if name and (folder / name).is_file()]


def _unread(folder: Path, said: str) -> ConfigError:
    return ConfigError(
        f"{folder} is a working tree that git does not read, so that nobody knows which files it ignores: {said} Run "
        "`git status` there and do what it says, or send a copy of the folder without its .git."
    )


def _walked(folder: Path) -> Iterator[str]:
    """Every file; a virtual environment is passed over, whatever its name, and links to folders are not followed."""
    for where, folders, files in os.walk(folder):
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not any(fnmatch.fnmatchcase(name, pattern) for pattern in REST)]
        for name in files:
            path = Path(where, name)
            if path.is_file():  # no socket, no link to nowhere
                yield path.relative_to(folder).as_posix()


def _check_size(folder: Path, files: Sequence[str]) -> None:
    sizes = {name: (folder / name).stat().st_size for name in files}
    if sum(sizes.values()) <= LIMIT:
        return
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
    named = ", ".join(f"{name} ({sizes[name] / 1e6:,.0f} MB)" for name in largest)
    leave_out = f"--submit_exclude '[{largest[0]}]'"
    raise ConfigError(
        f"{folder} holds {sum(sizes.values()) / 1e6:,.0f} MB in {len(files):,} files, and {LIMIT / 1e6:.0f} MB can be "
        f"sent with a job. The largest: {named}. Leave out what is not code, with {leave_out} or in .gitignore; data "
        "belong in a store that the cluster reads, such as s3://bucket/data."
    )
