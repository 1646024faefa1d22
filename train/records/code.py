"""Which code a run was made with: the state of its repository, and what differs from the commit."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shipline.lineage import described
from shipline.repository import look
from shipline.runs import DIFF_FILE, GIT_FILE

logger = logging.getLogger(__name__)

#: Bytes of a diff that are kept: more is hardly read by anybody, and each run keeps its own.
DIFF_BYTES = 1 << 20
MOST_CHANGES = 1000


@dataclass(frozen=True)
class Code:
    """What was found out about the user's code when the run began."""

    #: For the lineage: commit, dirty or not, versions of packages.
    lineage: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    branch: str | None = None
    changes: tuple[str, ...] | None = None  # None: there is no repository
    diff: str | None = None

    @classmethod
    def found(cls, directory: Path | None, ignoring: Path | None) -> Code:
        """Look at the repository around `directory`; files below `ignoring` are the run's own."""
        repository, diff = None, None
        try:
            repository = look(directory, ignoring)
            diff = repository.diff(DIFF_BYTES) if repository is not None and repository.dirty else None
        except OSError as error:  # no room for what git prints: the run goes on
            logger.warning("The state of the code's repository is not known: %s", error)
        lineage = described(repository)
        if repository is None:
            return cls(lineage)
        return cls(lineage, repository.commit, repository.branch, repository.changes, diff)

    def files(self) -> dict[str, bytes]:
        """Return the files that tell of it; none where there is no repository."""
        if self.changes is None:
            return {}
        state = {
            "commit": self.commit, "branch": self.branch, "dirty": bool(self.changes),
            "changes": list(self.changes[:MOST_CHANGES]),
        }  # fmt: skip
        files = {GIT_FILE: json.dumps(state, indent=1).encode()}
        if self.diff:
            files[DIFF_FILE] = self.diff.encode()
        return files
