"""Metrics as a CSV file in the run's directory."""

from __future__ import annotations

import csv
import io

from shipline.errors import NotFoundError
from shipline.store import Store
from shipline.train.loggers.base import Logger

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
        self._unsaved = 0

    def open(self, run: Store, resumed_step: int | None) -> None:
        """Begin with an empty file, or with the rows up to the step that a resumed run goes on from."""
        self._run = run
        self._rows = {}
        if resumed_step is None:
            return
        try:
            text = run.read(FILE).decode()
        except NotFoundError:
            return
        for row in csv.DictReader(io.StringIO(text)):
            if int(row["step"]) <= resumed_step:
                self._rows[int(row.pop("step"))] = {name: value for name, value in row.items() if value}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics; several calls for one step share a row."""
        self._rows.setdefault(step, {}).update({name: repr(value) for name, value in metrics.items()})
        self._unsaved += 1
        if self._unsaved >= self._flush_every:
            self.save()

    def save(self) -> None:
        """Write the file anew, whole: a reader never sees half a row, on any store."""
        if self._run is None or not self._unsaved:
            return
        names = sorted({name for row in self._rows.values() for name in row})
        text = io.StringIO()
        writer = csv.DictWriter(text, ["step", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"step": step, **row} for step, row in self._rows.items())
        self._run.write(FILE, text.getvalue().encode())
        self._unsaved = 0
