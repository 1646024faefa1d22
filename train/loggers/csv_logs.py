"""Metrics as a CSV file in the run's directory."""

from __future__ import annotations

import csv
import io
import logging
import threading
from collections.abc import Iterable
from typing import Any

from shipline.errors import ConfigError, NotFoundError, StoreError
from shipline.runs import HPARAMS_FILE, METRICS_FILE
from shipline.store import Store
from shipline.train.loggers.logger import Logger
from shipline.train.loggers.place import Place
from shipline.train.loggers.values import numbers, plain_params

logger = logging.getLogger(__name__)


class CSVLogger(Logger):
    """Writes `metrics.csv`: one row a step that logged something, one column a metric; empty where it was not logged.

    Args:
        save_dir: URL below which to keep the file, as `<save_dir>/<name>/<version>`; default: in the run's directory.
        name: of the experiment there; default: that of the run.
        version: there; default: that of the run.
        prefix: what names of metrics are to begin with, before a "-".
        flush_logs_every_n_steps: rows kept in memory before the file is written anew.
    """

    def __init__(
        self,
        save_dir: str | None = None,
        name: str | None = None,
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        if isinstance(flush_logs_every_n_steps, bool) or flush_logs_every_n_steps < 1:
            raise ConfigError(f"CSVLogger has flush_logs_every_n_steps={flush_logs_every_n_steps!r}; set 1 or more.")
        self._place = Place(save_dir, name, version)
        self._prefix = prefix
        self._flush_every = flush_logs_every_n_steps
        self._run: Store | None = None
        self._store: Store | None = None
        self._table = _Table()
        self._params: dict[str, Any] = {}
        self._params_saved = True
        self._kept: int | None = None
        self._next_flush = flush_logs_every_n_steps
        self._warned = False
        self._make_locks()

    def _make_locks(self) -> None:
        self._lock = threading.Lock()  # of the rows
        self._writing = threading.Lock()  # so that an older file never replaces a newer one

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_writing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_locks()

    @property
    def name(self) -> str | None:
        """The name of the experiment."""
        return self._place.name_in(self._run) or None

    @property
    def version(self) -> str | int | None:
        """The version that was given, or that of the run."""
        return self._place.number(self._run)

    @property
    def log_dir(self) -> str | None:
        """URL of the directory with the file."""
        return None if self._store is None else str(self._store)

    @property
    def save_dir(self) -> str | None:
        """URL that was given."""
        return self._place.shown

    def state_dict(self) -> dict[str, Any]:
        """Return how many rows there are: a resumed run writes those after them anew."""
        return {"rows": len(self._table)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the number of rows to go on after."""
        self._kept = state["rows"]

    def open(self, run: Store | None, resumed_step: int | None) -> None:
        """Begin with an empty file, or with the rows that a resumed run goes on after."""
        kept, self._kept = self._kept, None
        self._run, self._store, self._table = run, self._place.store(run), _Table()
        if resumed_step is None or self._store is None:
            return
        try:
            text = self._store.read(METRICS_FILE).decode()
        except NotFoundError:
            return
        for number, row in enumerate(csv.DictReader(io.StringIO(text))):
            step = int(row.pop("step"))
            if number < kept if kept is not None else step < resumed_step:
                self._table.update(step, {name: value for name, value in row.items() if value})

    def log_hyperparams(self, params: Any) -> None:
        """Take arguments; they are written to `hparams.yaml` beside the metrics."""
        with self._lock:
            self._params.update(plain_params(params))
            self._params_saved = False

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics; several calls in a row for one step share a row."""
        values = {name: repr(value) for name, value in numbers(metrics, self._prefix).items() if name != "step"}
        with self._lock:
            self._table.update(step, values)
            due = self._table.unsaved >= self._next_flush
        if due:
            self._save_if_possible()

    def save(self) -> None:
        """Write the file anew, whole: a reader never sees half a row, on any store.

        Raises:
            StoreError: it cannot be written; the rows stay in memory.
        """
        import yaml  # its import takes time, and the first step needs none

        if self._store is None:
            return
        with self._writing:
            with self._lock:  # training goes on while the store takes the files
                count, data = self._table.unsaved, self._table.render() if self._table.unsaved else b""
                params = b"" if self._params_saved else yaml.safe_dump(self._params, sort_keys=False).encode()
                self._params_saved = True
            try:
                if params:
                    self._store.write(HPARAMS_FILE, params)
                if count:
                    self._store.write(METRICS_FILE, data)
            except StoreError:
                self._params_saved = self._params_saved and not params
                raise
            with self._lock:
                self._table.unsaved -= count
                self._next_flush, self._warned = self._flush_every, False

    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()

    def _save_if_possible(self) -> None:
        """What a step logs can wait: `save` is called before each checkpoint, and at the end, and fails if it must."""
        try:
            self.save()
        except StoreError as error:
            if not self._warned:
                logger.warning("%s Metrics are kept in memory until the store takes them.", error)
            self._warned = True
            self._next_flush = self._table.unsaved + self._flush_every


class _Table:
    """Rows, and each as it stands in the file: only those that are new, or have changed, are written out again.

    Only the last one can change. A step that comes again after another one, such as that of a validation which counts
    by itself, gets a row of its own: so the number of rows says how far the records go.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, dict[str, str]]] = []
        self._lines: list[str] = []
        self._names: list[str] = []
        self.unsaved = 0

    def __len__(self) -> int:
        return len(self._rows)

    def update(self, step: int, values: dict[str, str]) -> None:
        """Put the values into the last row, if that is of this step, or into a new one."""
        if not self._rows or self._rows[-1][0] != step:
            self._rows.append((step, {}))
        self._rows[-1][1].update(values)
        del self._lines[len(self._rows) - 1 :]
        self.unsaved += 1
        if new := values.keys() - set(self._names):
            self._names = sorted([*self._names, *new])
            self._lines.clear()  # each row gets a new field

    def render(self) -> bytes:
        """Return the file."""
        for step, row in self._rows[len(self._lines) :]:
            self._lines.append(_line([step, *(row.get(name, "") for name in self._names)]))
        return "".join([_line(["step", *self._names]), *self._lines]).encode()


def _line(fields: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()
