"""`shipline runs compare`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from shipline.commands.console import console, printable
from shipline.config import new_parser, parse
from shipline.errors import ConfigError
from shipline.runs import CONFIG_FILE, ENVIRONMENT_FILE, HPARAMS_FILE, FoundRun, best_of, better_mode, open_run
from shipline.store import redact

Facts = dict[str, Any]
_MISSING = "-"


def compare(arguments: Sequence[str]) -> None:
    """Show in what runs differ, and how well each did."""
    parser = new_parser("runs compare", "Show in which settings runs differ, and their metrics beside each other.")
    parser.add_argument("runs", type=str, nargs="+", help="URLs of two runs or more.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    settings = parse(parser, arguments)
    if len(settings.runs) < 2:
        raise ConfigError("Compare which runs? Give two or more, such as: shipline runs compare runs/x/version_{0,1}")
    runs = [open_run(url) for url in settings.runs]
    settings_of = _differing([_settings(run) for run in runs])
    metrics = _beside([_metrics(run) for run in runs])
    if settings.json:
        found = {"runs": [str(run.store) for run in runs], "settings": settings_of, "metrics": metrics}
        print(json.dumps(found, indent=1, allow_nan=False))  # noqa: T201
        return
    console.print(_table("what differs", runs, settings_of))
    console.print(_table("metrics", runs, metrics))


def _settings(run: FoundRun) -> Facts:
    """What the run was made with, by dotted names."""
    lineage = run.record.lineage
    environment = run.settings(ENVIRONMENT_FILE)
    facts: Facts = {"state": run.state, "module": run.record.module}
    arguments, config = run.settings(HPARAMS_FILE), run.settings(CONFIG_FILE)
    if arguments:  # the module and its arguments are there already
        config = {name: value for name, value in config.items() if name != "module"}
    facts |= _flat("hparams", arguments) | _flat("config", config)
    facts |= {name: lineage.get(name) for name in ("git_commit", "git_dirty", "data_fingerprint", "seed", "world_size")}
    facts |= _flat("accelerator", environment.get("accelerator") or {})
    facts |= _flat("package", environment.get("packages") or {})
    return facts


def _metrics(run: FoundRun) -> Facts:
    """The last value of each metric, and the best where there was more than one."""
    facts: Facts = {"epochs": run.record.epochs, "steps": run.record.steps, "seconds": run.seconds}
    facts |= run.record.metrics
    for name, points in run.history().items():
        if name == "epoch":
            continue
        values = [value for _, value in points]
        facts[name] = values[-1]
        if len(values) > 1:
            facts[f"{name} (best)"] = best_of(values, better_mode(name))
    return {name: _plain(value) for name, value in facts.items()}


def _flat(name: str, value: Any) -> Facts:
    if not isinstance(value, dict):
        return {name: _plain(value)}
    return {key: item for part, content in value.items() for key, item in _flat(f"{name}.{part}", content).items()}


def _differing(facts: list[Facts]) -> dict[str, list[Any]]:
    return {name: values for name, values in _beside(facts).items() if any(value != values[0] for value in values[1:])}


def _beside(facts: list[Facts]) -> dict[str, list[Any]]:
    return {name: [each.get(name) for each in facts] for name in dict.fromkeys(n for each in facts for n in each)}


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | bool | int | float | None) else json.loads(json.dumps(value, default=str))


def _table(title: str, runs: list[FoundRun], rows: dict[str, list[Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for run in runs:
        table.add_column(printable(f"{run.experiment}/{run.version}"), overflow="fold")
    for name, values in rows.items():
        table.add_row(printable(name), *(printable(redact(_shown(value))) for value in values))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return _MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)
