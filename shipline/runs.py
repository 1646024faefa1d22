"""What runs leave in `<root>/<name>/version_N`, and how it is read again, on any store, without torch."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from shipline.errors import ConfigError, IntegrityError, NotFoundError
from shipline.store import Store, open_store, redact, split

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
HPARAMS_FILE = "hparams.yaml"
METRICS_FILE = "metrics.csv"
ENVIRONMENT_FILE = "environment.json"
GIT_FILE = "git.json"
DIFF_FILE = "git.diff"
CHECKPOINTS = "checkpoints"

Mode = Literal["min", "max"]
Points = list[tuple[int, float]]

#: Runs that are read at once: on an object store each takes a few round trips.
READERS = 16
_VERSION = re.compile(r"version_(\d+)")
_HIGHER_IS_BETTER = re.compile(
    r"(?i)acc|auc|auroc|(^|[_/.-])(f1|map|r2|iou|dice|bleu|rouge|psnr|ssim)($|[_/.-])|precision|recall|score|reward"
)


class RunRecord(BaseModel):
    """What `run.json` says: how a run began, how it goes, how it ended."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    module: str = ""
    lineage: dict[str, Any] = {}
    state: Literal["running", "finished", "failed", "interrupted"] | None = None  # None: of an older Shipline
    started_at: datetime | None = None
    resumed_at: datetime | None = None  # the last time
    ended_at: datetime | None = None
    seconds: float = 0.0  # of all its times together, but for one that goes on
    epochs: int = 0
    steps: int = 0
    metrics: dict[str, float | None] = {}  # the last values; None is one that is not finite
    monitor: str | None = None
    mode: Mode | None = None
    best: float | None = None  # of the monitored metric
    error: str | None = None
    host: str | None = None  # where it runs, or ran
    pid: int | None = None
    job: str | None = None  # what its queue calls it


@dataclass(frozen=True)
class FoundRun:
    """A run on a store."""

    store: Store
    record: RunRecord
    #: What is wrong with its `run.json`.
    problem: str | None = None

    @property
    def experiment(self) -> str:
        """The name of its experiment."""
        return split(split(self.store.url)[0])[1]

    @property
    def version(self) -> str:
        """The name of its directory."""
        return split(self.store.url)[1]

    @property
    def state(self) -> str:
        """What became of it; "lost" where it says that it runs, and its process on this machine is gone."""
        if self.problem is not None:
            return "damaged"
        record = self.record
        if record.state == "running" and record.host == socket.gethostname() and not _is_alive(record.pid):
            return "lost"
        return record.state or "unknown"

    @property
    def seconds(self) -> float | None:
        """How long it has trained."""
        record = self.record
        began = record.resumed_at or record.started_at
        if self.state == "running" and began is not None:
            return record.seconds + (datetime.now(UTC) - began).total_seconds()
        return record.seconds if record.ended_at is not None else None

    def history(self) -> dict[str, Points]:
        """Return the steps and values of each metric in `metrics.csv`; {} where there is none."""
        try:
            return parse_metrics(self.store.read(METRICS_FILE))
        except NotFoundError:
            return {}

    def settings(self, file: str) -> dict[str, Any]:
        """Return what a YAML or JSON file of the run holds; {} where there is none.

        Raises:
            IntegrityError: it is damaged.
        """
        import yaml  # its import takes time, and a run that begins needs none

        try:
            content = yaml.safe_load(self.store.read(file))
        except NotFoundError:
            return {}
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise IntegrityError(f"{self.store}/{file} cannot be read: {error}. Delete it, or restore it.") from error
        return content if isinstance(content, dict) else {}


def find_runs(root: str) -> list[FoundRun]:
    """Return the runs at a URL: that of a run, of an experiment, or of what holds experiments; in order.

    Raises:
        NotFoundError: there is none.
    """
    store = open_store(root)
    with ThreadPoolExecutor(READERS) as pool:
        found = list(_directories(store))
        if not found:
            below = [_at(store, name) for name in store.list()]
            listed = pool.map(lambda each: list(_directories(each)) if each is not None else [], below)
            found = [run for each in listed for run in each]
        runs = [run for run in pool.map(_read, found) if run is not None]
    if not runs:
        raise NotFoundError(f"No run below {store}. Give the default_root_dir of a Trainer, an experiment, or a run.")
    return runs


def open_run(url: str) -> FoundRun:
    """Return the run in this directory.

    Raises:
        NotFoundError: there is none.
        IntegrityError: its `run.json` is damaged.
    """
    run = _read(open_store(url))
    if run is None:
        raise NotFoundError(
            f"No run at {redact(url)}: it has no {RUN_FILE}. Give its directory: <root>/<name>/version_N."
        )
    if run.problem is not None:
        raise IntegrityError(run.problem)
    return run


def parse_metrics(data: bytes) -> dict[str, Points]:
    """Return the steps and values of each metric in a `metrics.csv`; rows that are damaged are left out."""
    found: dict[str, Points] = {}
    for row in csv.DictReader(io.StringIO(data.decode(errors="replace"))):
        step = _number(row.pop("step", None))
        for name, text in row.items() if step is not None else ():
            if name is not None and (value := _number(text)) is not None:
                found.setdefault(name, []).append((int(step or 0), value))
    return found


def better_mode(metric: str) -> Mode:
    """Return whether more or less of a metric is better, going by its name."""
    return "max" if _HIGHER_IS_BETTER.search(metric) else "min"


def best_of(values: Iterable[float], mode: Mode) -> float | None:
    """Return the best value; those that are NaN do not count."""
    numbers = [value for value in values if value == value]
    return (max if mode == "max" else min)(numbers, default=None)


def _directories(store: Store) -> Iterator[Store]:
    """The run that lies here, or those of the experiment, in order."""
    names = store.list()
    if RUN_FILE in names:
        yield store
        return
    numbers = sorted(int(match[1]) for name in names if (match := _VERSION.fullmatch(name)))
    yield from (store.at(f"version_{number}") for number in numbers)


def _at(store: Store, name: str) -> Store | None:
    try:
        return store.at(name)
    except ConfigError:  # a file of somebody else's, with a name that no experiment has
        return None


def _read(store: Store) -> FoundRun | None:
    try:
        data = store.read(RUN_FILE)
    except NotFoundError:
        return None
    try:
        return FoundRun(store, RunRecord.model_validate(json.loads(data)))
    except (ValidationError, ValueError, RecursionError):
        problem = f"{store}/{RUN_FILE} is damaged: it is no record of a run. Delete the run, or restore the file."
        return FoundRun(store, RunRecord(), problem)


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _is_alive(pid: int | None) -> bool:
    if pid is None or sys.platform == "win32":  # there, to ask is to end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
