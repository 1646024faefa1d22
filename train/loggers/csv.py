"""Metrics as a CSV file in the run's directory."""

from __future__ import annotations

import csv
import io
import logging
import threading
from typing import Any

from shipline.errors import NotFoundError, StoreError
from shipline.store import Store
from shipline.train.loggers.base import Logger

logger = logging.getLogger(__name__)

FILE = "metrics.csv"


class CSVLogger(Logger):
    """Writes `metrics.csv`: one row a step that logged something, one column a metric; empty where it was not logged.

    Args:
        flush_logs_every_n_steps: rows kept in memory before the file is written anew.
    """

    def __init__(self, flush_logs_every_n_steps: int = 100) -> None:
        self._flush_every = flush_logs_every_n_steps
        self._run: Store | None = None
        self._rows: dict[int, dict[str, str]] = {}
        self._unsaved, self._due = 0, flush_logs_every_n_steps
        self._kept: int | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def log_dir(self) -> str | None:
        """URL of the run's directory."""
        return None if self._run is None else str(self._run)

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows there are: a resumed run writes those after them anew."""
        return {"rows": len(self._rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the number of rows to go on after."""
        self._kept = state["rows"]

    def open(self, run: Store | None, resumed_step: int | None) -> None:
        """Begin with an empty file, or with the rows that a resumed run goes on after."""
        kept, self._kept = self._kept, None
        self._run, self._rows = run, {}
        if resumed_step is None or run is None:
            return
        try:
            text = run.read(FILE).decode()
        except NotFoundError:
            return
        for number, row in enumerate(csv.DictReader(io.StringIO(text))):
            step = int(row.pop("step"))
            if number < kept if kept is not None else step < resumed_step:
                self._rows[step] = {name: value for name, value in row.items() if value}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics; several calls for one step share a row."""
        with self._lock:
            self._rows.setdefault(step, {}).update({name: repr(value) for name, value in metrics.items()})
            self._unsaved += 1
        if self._unsaved >= self._due:
            self._flush()

    def _flush(self) -> None:
        """Write the rows so far, if that is possible now: a store that is away must not end training."""
        try:
            self.save()
        except StoreError as error:
            self._due = self._unsaved + self._flush_every
            logger.warning("%s The metrics are kept, and written later.", error)

    def save(self) -> None:
        """Write the file anew, whole: a reader never sees half a row, on any store."""
        with self._lock:
            if self._run is None or not self._unsaved:
                return
            names = sorted({name for row in self._rows.values() for name in row})
            text = io.StringIO()
            writer = csv.DictWriter(text, ["step", *names], lineterminator="\n")
            writer.writeheader()
            writer.writerows({"step": step, **row} for step, row in self._rows.items())
            self._run.write(FILE, text.getvalue().encode())
            self._unsaved, self._due = 0, self._flush_every
