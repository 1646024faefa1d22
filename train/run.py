"""The directory of a run, `<root>/<name>/version_N`, and what came out of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from shipline.checkpoint import POINTERS, Checkpoint, open_checkpoint
from shipline.errors import ExistsError, IntegrityError, NotFoundError
from shipline.runs import CHECKPOINTS as CHECKPOINTS, RUN_FILE, RunRecord
from shipline.store import Store, absolute, check_name, join, open_store, read_pointers, redact, write_pointers

if TYPE_CHECKING:
    from shipline.train.environments import ClusterEnvironment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its files: the experiment `<root>/<name>`, and the run's own directory in it."""

    experiment: str
    version: str

    @classmethod
    def create(cls, root: str, name: str, description: dict[str, Any]) -> RunDirectory:
        """Take the next free `version_N`; two runs that start at once get different ones."""
        experiment = open_store(join(absolute(root), check_name("run", name)))
        number = max(_numbers(experiment), default=-1) + 1
        content = json.dumps(description, indent=1).encode()
        while True:
            try:
                experiment.create(f"version_{number}/{RUN_FILE}", content)
            except ExistsError:
                number += 1
                continue
            return cls(experiment.url, f"version_{number}")

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> RunDirectory | None:
        """Return the run that a checkpoint lies in, or None where it lies elsewhere."""
        parts = checkpoint.store.url.split("/")
        if len(parts) < 4 or parts[-2] != CHECKPOINTS or not parts[-3].startswith("version_"):
            return None
        return cls("/".join(parts[:-3]), parts[-3])

    @property
    def store(self) -> Store:
        """The run's own directory."""
        return open_store(join(self.experiment, self.version))

    def point(self, name: str, checkpoint: str) -> None:
        """Make `<run>/<name>` and `<experiment>/<name>` mean the checkpoint with this directory name."""
        key = f"{CHECKPOINTS}/{checkpoint}"
        point(self.store, name, key)
        point(open_store(self.experiment), name, f"{self.version}/{key}")


def point(store: Store, name: str, checkpoint: str) -> None:
    """Make `name` mean the checkpoint with this key below the store; a damaged file of names is written anew."""
    change = {name: {"checkpoint": checkpoint}}
    try:
        write_pointers(store, POINTERS, change)
    except IntegrityError as error:
        logger.warning("%s It is written anew.", error)
        store.write(POINTERS, json.dumps(change, indent=1).encode())


def last_of_job(experiment: str, environment: ClusterEnvironment, elsewhere: Sequence[str]) -> str | None:
    """Return the URL of the newest checkpoint that a job has left before it went back to its queue, if it has.

    Args:
        experiment: whose runs have checkpoints of their own.
        environment: of the job.
        elsewhere: URLs where they may be besides: what was committed there since the job began is taken for its own.
    """
    if not environment.restarted():
        return None
    store = open_store(absolute(experiment))
    for number in sorted(_numbers(store), reverse=True):
        run = store.at(f"version_{number}")
        try:
            record = RunRecord.model_validate_json(run.read(RUN_FILE))
            if record.job != environment.job:
                continue
            if "last" in read_pointers(run, POINTERS):
                return join(run.url, "last")
        except (NotFoundError, IntegrityError, ValidationError):  # a directory of somebody else's, or a damaged one
            continue
        committed = {at: url for url in elsewhere if (at := _committed_at(url)) is not None}
        if record.started_at is not None and committed and max(committed) >= record.started_at:
            return committed[max(committed)]
    logger.warning("Job %s has run before and left no checkpoint: it begins anew.", environment.job)
    return None


def _committed_at(url: str) -> datetime | None:
    try:
        return open_checkpoint(url).manifest.created_at
    except (NotFoundError, IntegrityError):
        return None


def _numbers(experiment: Store) -> list[int]:
    names = (name.removeprefix("version_") for name in experiment.list() if name.startswith("version_"))
    return [int(name) for name in names if name.isdecimal()]


@dataclass
class Run:
    """A finished fit: what `sl.export` takes."""

    url: str | None
    metrics: dict[str, float]
    best_url: str | None
    last_url: str | None
    module: Any = None
    data: Any = None
    result: Any = None  # of a function of the user's own

    def __repr__(self) -> str:
        urls = f"url={self.url!r}, best_url={self.best_url!r}, last_url={self.last_url!r}"
        return f"Run({redact(urls)}, metrics={self.metrics!r})"

    @property
    def checkpoint(self) -> Checkpoint:
        """The best checkpoint, or the last one where nothing was monitored."""
        url = self.best_url or self.last_url
        if url is None:
            raise ValueError("The run wrote no checkpoint: leave enable_checkpointing on, and let it finish an epoch.")
        return open_checkpoint(url)
