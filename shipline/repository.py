"""The git repository that code comes from: its commit, its branch, and what differs from it."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shipline.store import redact

TIMEOUT_S = 10
#: A file of such a name is left out of a diff: it is made to hold what nobody else may read.
SECRET_FILES = ("*.env", ".env*", "*.pem", "*.key", "*secret*", "*credential*", ".netrc", "*.tfvars")
# A name such as api_key or HF_TOKEN, and what it is set to: a literal in quotes, or what looks like no word.
_SECRET_VALUE = re.compile(
    r"""((?:passw\w*|secret|credentials?|token|(?:api|access|private|secret|auth)_?key)["'\]]*\s*[:=]\s*)"""
    r"""(?:"[^"\n]+"|'[^'\n]+'|(?=\S*\d)[\w/+=-]{8,}$)""",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Repository:
    """A repository as it was found."""

    root: Path
    commit: str | None
    branch: str | None
    #: What git says of each file that differs from the commit, such as ".M train.py" or "? new.py".
    changes: tuple[str, ...]

    @property
    def dirty(self) -> bool:
        """Whether files differ from the commit."""
        return bool(self.changes)

    def diff(self, limit: int) -> str | None:
        """Return how tracked files differ from the commit, without what looks like credentials.

        Args:
            limit: bytes after which it is cut off; the last line then says so.
        """
        if self.commit is None:
            return None
        with tempfile.TemporaryFile() as file:
            without = [f":(exclude,top,icase,glob)**/{name}" for name in SECRET_FILES]
            # Nothing that the repository's own settings name is to be run.
            if not _run(self.root, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--", ".", *without, into=file):
                return None
            file.seek(0)
            text = file.read(limit + 1).decode(errors="replace")
        if len(text) > limit:
            text = f"{text[:limit]}\n… cut off after {limit} bytes\n"
        return _SECRET_VALUE.sub(r"\1***", redact(text))


def look(directory: Path | None = None, ignoring: Path | None = None) -> Repository | None:
    """Return the repository that `directory` lies in, None where there is none, or no git.

    Args:
        directory: default: the working directory.
        ignoring: a directory whose files do not count as changes: what a run writes itself.
    """
    root = _git(directory, "rev-parse", "--show-toplevel")
    if root is None:
        return None
    paths = ["."]
    if ignoring is not None and (own := ignoring.absolute()).is_relative_to(root) and own != Path(root):
        paths.append(f":(exclude,top,literal){own.relative_to(root)}")
    status = _git(Path(root), "status", "--porcelain=v2", "--branch", "--", *paths)
    return None if status is None else _parsed(Path(root), status)


def _parsed(root: Path, status: str) -> Repository:
    lines = status.splitlines()
    headers = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# "))
    changes = tuple(_change(line) for line in lines if not line.startswith("# "))
    commit, branch = headers.get("branch.oid"), headers.get("branch.head")
    return Repository(
        root, None if commit == "(initial)" else commit, None if branch == "(detached)" else branch, changes
    )


def _change(line: str) -> str:
    """Of `1 .M N... 100644 100644 100644 <hash> <hash> path`, `.M path`; of `? path`, itself."""
    kind, _, rest = line.partition(" ")
    fields = {"1": 7, "2": 8, "u": 9}.get(kind)
    if fields is None:
        return line
    parts = rest.split(" ", fields)
    return f"{parts[0]} {parts[-1]}"


def _git(directory: Path | None, *arguments: str) -> str | None:
    """Return what git prints, or None where there is no git or no repository."""
    with tempfile.TemporaryFile() as file:
        if not _run(directory, *arguments, into=file):
            return None
        file.seek(0)
        return file.read().decode(errors="replace").strip()


def _run(directory: Path | None, *arguments: str, into: object) -> bool:
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    # Without the lock, a git command that the user gives at the same time finds the index free.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        subprocess.run(  # noqa: S603
            command, cwd=directory, env=environment, stdout=into, stderr=subprocess.DEVNULL,  # type: ignore[call-overload]
            stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False
    return True
