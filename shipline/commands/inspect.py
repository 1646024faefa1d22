"""`shipline inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from shipline.artifact import REPORT_JSON, Artifact, Model, find_artifacts, open_model
from shipline.commands.console import console, printable, split_positional
from shipline.config import new_parser, parse
from shipline.errors import ConfigError


def run(arguments: Sequence[str]) -> None:
    """Show models, or a model's versions, and the signature, verdicts and lineage of each artifact found."""
    url, rest = split_positional(arguments)
    parser = new_parser("inspect", "Show what a repository, a model or a version, given first, holds.")
    parser.add_argument(
        "--diff", type=str | None, default=None, help="Show where this version differs instead: --diff OLD NEW."
    )
    settings = parse(parser, rest)
    if url is None:
        raise ConfigError("What to inspect? Give a URL first, such as: shipline inspect s3://bucket/models/digits")
    if settings.diff is not None:
        _show_differences(_one(settings.diff), _one(url))
        return
    artifacts = find_artifacts(url)
    if len(artifacts) == 1 and artifacts[0].store.url != url.rstrip("/"):
        _show_versions(open_model(artifacts[0].store.url.rpartition("/")[0]))
    for artifact in artifacts:
        _show(artifact)


def _one(url: str) -> Artifact:
    """The version at a URL, or a model's stable one."""
    found = find_artifacts(url)
    if len(found) != 1:
        raise ConfigError(f"{url} holds {len(found)} models; give one of them, or a version, to compare.")
    return found[0]


def _show_differences(old: Artifact, new: Artifact) -> None:
    names = [f"{each.manifest.name} version {each.manifest.version}" for each in (old, new)]
    before, after = _flat(old), _flat(new)
    table = Table(title="Where they differ", title_justify="left")
    for column in ("what", *names, "change"):
        table.add_column(printable(column), overflow="fold")
    for what in dict.fromkeys((*before, *after)):
        one, other = before.get(what), after.get(what)
        if one != other:
            table.add_row(*(printable(text) for text in (what, _shown(one), _shown(other), _change(one, other))))
    console.print(table if table.row_count else f"{names[0]} and {names[1]} differ in nothing but their digests.")


def _flat(artifact: Artifact) -> dict[str, Any]:
    """What an artifact says of itself, one value a name; of the files their sizes."""
    manifest = artifact.manifest
    content = manifest.model_dump(mode="json", exclude={"files", "digest", "version", "verdicts", "signature"})
    content["signature"] = str(manifest.signature)
    content["verdicts"] = {
        each.gate: each.measured if each.passed else f"failed: {each.measured}" for each in manifest.verdicts
    }
    content["agreement"] = _agreement(artifact)
    content["bytes"] = {name: entry.size for name, entry in manifest.files.items()}
    return dict(_leaves("", content))


def _agreement(artifact: Artifact) -> dict[str, dict[str, float]]:
    """By output, the share of rows in which the class is the trained module's: of all, and of those of each class.

    What was imported has no candidates, and nor has a report that something else wrote.
    """
    report = json.loads(artifact.read(REPORT_JSON)) if REPORT_JSON in artifact.manifest.files else {}
    candidates: list[dict[str, Any]] = report.get("candidates", [])
    chosen = next((each for each in candidates if each["chosen"]), {})
    return {
        each["output"]: {
            "all": each["agreed"] / each["rows"],
            **{f"class {of['name']}": of["agreed"] / of["rows"] for of in each["classes"]},
        }
        for each in chosen.get("agreement", ())
    }


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}" if name else key, inner)
    else:
        yield name, value


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _change(one: Any, other: Any) -> str:
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other))
    return f"{other - one:+.6g}" if numbers else ""


def _show_versions(model: Model) -> None:
    channels = model.channels()
    table = Table(title=f"{model.name} ({model.store})", title_justify="left")
    for column in ("version", "channels", "precision", "metrics", "created", "size"):
        table.add_column(column)
    for version in model.versions():
        manifest = model.open(version).manifest
        named = [f"{name} {c.get('weight', 100)} %" for name, c in channels.items() if c.get("version") == version]
        metrics = [f"{name} {value:.4g}" for name, value in manifest.metrics.items()]
        table.add_row(
            version,
            printable(", ".join(named)),
            printable(manifest.precision),
            printable(", ".join(metrics)),
            f"{manifest.created_at:%Y-%m-%d %H:%M}",
            f"{sum(entry.size for entry in manifest.files.values()):,} bytes",
        )
    console.print(table)


def _show(artifact: Artifact) -> None:
    manifest = artifact.manifest
    table = Table(title=f"{manifest.name} version {manifest.version}", title_justify="left", show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value", overflow="fold")
    for what, value in _facts(artifact):
        table.add_row(printable(what), printable(value))
    console.print(table)


def _facts(artifact: Artifact) -> Iterator[tuple[str, str]]:
    manifest = artifact.manifest
    yield "signature", str(manifest.signature)
    yield "digest", manifest.digest
    for verdict in manifest.verdicts:
        yield verdict.gate, f"{'passed' if verdict.passed else 'failed'}: {verdict.message}"
    for name, value in manifest.lineage.model_dump(mode="json").items():
        if value not in (None, {}):
            yield name, str(value)
    yield "files", ", ".join(f"{name} ({entry.size:,})" for name, entry in manifest.files.items())
