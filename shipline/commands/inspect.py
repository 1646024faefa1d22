"""`shipline inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from shipline.artifact import Artifact, Model, find_artifacts, open_model
from shipline.commands.console import console, printable, split_positional
from shipline.config import new_parser, parse
from shipline.errors import ConfigError


def run(arguments: Sequence[str]) -> None:
    """Show models, or a model's versions, and the signature, verdicts and lineage of each artifact found."""
    url, rest = split_positional(arguments)
    parse(new_parser("inspect", "Show what a repository, a model or a version, given first, holds."), rest)
    if url is None:
        raise ConfigError("What to inspect? Give a URL first, such as: shipline inspect s3://bucket/models/digits")
    artifacts = find_artifacts(url)
    if len(artifacts) == 1 and artifacts[0].store.url != url.rstrip("/"):
        _show_versions(open_model(artifacts[0].store.url.rpartition("/")[0]))
    for artifact in artifacts:
        _show(artifact)


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
