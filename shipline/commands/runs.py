"""`shipline runs`, and `shipline runs compare`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from shipline.commands.console import console, printable
from shipline.commands.runs_compare import compare
from shipline.config import new_parser, parse
from shipline.errors import ConfigError, nearest
from shipline.runs import READERS, FoundRun, Mode, best_of, better_mode, find_runs
from shipline.store import redact, split

_SORTS = ("started", "name", "state", "duration", "epochs", "steps", "best", "last")


def run(arguments: Sequence[str]) -> None:
    """Show the runs below a URL, or compare some."""
    if arguments and arguments[0] == "compare":
        compare(arguments[1:])
        return
    parser = new_parser("runs", "List the runs below a URL. `shipline runs compare A B` shows what differs.")
    parser.add_argument("root", type=str, nargs="?", default="runs", help="URL of runs, an experiment, or one run.")
    parser.add_argument("--metric", type=str | None, default=None, help="Show this one; default: the one monitored.")
    parser.add_argument("--mode", type=Mode | None, default=None, help="What is best; default: as monitored, or named.")
    parser.add_argument("--sort", type=str, default="started", help=f"By {', '.join(_SORTS)}; a - before it reverses.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    settings = parse(parser, arguments)
    key, reverse = settings.sort.removeprefix("-"), settings.sort.startswith("-")
    if key not in _SORTS:
        raise ConfigError(f"Runs have no {key!r} to sort by.{nearest(key, _SORTS)} Known: {', '.join(_SORTS)}.")
    found = find_runs(settings.root)
    with ThreadPoolExecutor(READERS) as pool:  # some need their metrics.csv
        rows = list(pool.map(lambda each: Row.of(each, settings.metric, settings.mode), found))
    rows = _sorted(rows, key, reverse=reverse)
    if settings.json:
        print(json.dumps([row.as_json() for row in rows], indent=1, allow_nan=False))  # noqa: T201
    else:
        console.print(_table(rows))


@dataclass(frozen=True)
class Row:
    """A run, and the metric that it is looked at by."""

    run: FoundRun
    metric: str | None
    best: float | None
    last: float | None

    @classmethod
    def of(cls, run: FoundRun, metric: str | None, mode: Mode | None) -> Row:
        """Look the metric up: in what the run said at its end, or in what it has logged."""
        record = run.record
        name = metric or record.monitor or _main_metric(record.metrics)
        known = name is not None and name == record.monitor and record.best is not None and mode in (None, record.mode)
        if known and run.state == "finished":
            return cls(run, name, record.best, record.metrics.get(str(name)))
        history = run.history()
        name = name or _main_metric(history)
        if name is None:
            return cls(run, None, None, None)
        values = [value for _, value in history.get(name, [])]
        last = values[-1] if values else record.metrics.get(name)
        mode = mode or (record.mode if name == record.monitor and record.mode else better_mode(name))
        return cls(run, name, best_of(values, mode) if values else last, last)

    def key(self, name: str) -> Any:
        """Return what to sort by; None where the run does not have it."""
        record = self.run.record
        return {
            "started": record.started_at, "name": f"{self.run.experiment}/{self.run.version}",
            "state": self.run.state, "duration": self.run.seconds, "epochs": record.epochs, "steps": record.steps,
            "best": _finite(self.best), "last": _finite(self.last),
        }[name]  # fmt: skip

    def as_json(self) -> dict[str, Any]:
        """Return what JSON holds of it: a number that is not finite is null."""
        record, lineage = self.run.record, self.run.record.lineage
        started, ended = record.started_at, record.ended_at
        return {
            "experiment": self.run.experiment, "version": self.run.version, "url": str(self.run.store),
            "state": self.run.state, "started_at": None if started is None else started.isoformat(),
            "ended_at": None if ended is None else ended.isoformat(), "seconds": self.run.seconds,
            "epochs": record.epochs, "steps": record.steps, "metric": self.metric, "best": _finite(self.best),
            "last": _finite(self.last), "metrics": record.metrics, "module": record.module,
            "git_commit": lineage.get("git_commit"), "git_dirty": lineage.get("git_dirty"),
            "error": record.error, "problem": self.run.problem,
        }  # fmt: skip


def _table(rows: list[Row]) -> Table:
    """One line a run, and at a width of 80 only the names of runs and metrics may need a second."""
    root = split(split(str(rows[0].run.store))[0])[0]
    metrics = {row.metric for row in rows if row.metric}
    title = f"{root}/" + (f"  {next(iter(metrics))}" if len(metrics) == 1 else "")
    table = Table(title=printable(redact(title)), title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold", min_width=9)
    for column in ("state", "started", "took", "epochs", "steps"):
        table.add_column(column, no_wrap=True)
    if len(metrics) > 1:
        table.add_column("metric", overflow="fold", min_width=7)
    for column in ("best", "last", "code"):
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(printable(redact(cell)) for cell in _cells(row, len(metrics) > 1)))
    return table


def _cells(row: Row, several_metrics: bool) -> list[str]:
    record = row.run.record
    return [
        f"{row.run.experiment}/{row.run.version}",
        row.run.state,
        "" if record.started_at is None else f"{record.started_at.astimezone():%m-%d %H:%M}",
        duration(row.run.seconds),
        str(record.epochs),
        str(record.steps),
        *([row.metric or ""] if several_metrics else []),
        number(row.best),
        number(row.last),
        code(row.run),
    ]


def code(run: FoundRun) -> str:
    """Return the commit of a run's code, short, with a + where files differed from it."""
    commit = run.record.lineage.get("git_commit")
    return "" if not isinstance(commit, str) else commit[:7] + ("+" if run.record.lineage.get("git_dirty") else "")


def duration(seconds: float | None) -> str:
    """Return a time as people read it."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def number(value: float | None) -> str:
    """Return a metric as people read it."""
    return "" if value is None else f"{value:.4g}"


def _sorted(rows: list[Row], name: str, *, reverse: bool) -> list[Row]:
    """Those that do not have what is sorted by come last."""
    having = [row for row in rows if row.key(name) is not None]
    return sorted(having, key=lambda row: row.key(name), reverse=reverse) + [r for r in rows if r.key(name) is None]


def _main_metric(metrics: Any) -> str | None:
    """Where nothing was monitored: a loss of validation, or what else validation says, or anything."""
    names = [name for name in metrics if name != "epoch"]
    return min(names, key=lambda name: (name != "val_loss", not name.startswith("val"), name), default=None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
