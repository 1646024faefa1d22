"""`shipline export`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace
from rich.table import Table

from shipline.artifact import REPORT_HTML, REPORT_JSON, Artifact
from shipline.checkpoint import Checkpoint
from shipline.client.inputs import inputs_of
from shipline.commands.console import console, split_positional
from shipline.commands.links import check_links
from shipline.commands.train import train_parser
from shipline.config import build, new_parser, parse, read_sources
from shipline.config.files import read_file
from shipline.errors import ConfigError

if TYPE_CHECKING:
    from shipline.export.lightning import LightningCheckpoint
    from shipline.train import DataModule


def run(arguments: Sequence[str]) -> None:
    """Export a checkpoint, or a language model, and show the verdicts."""
    from shipline.compose import export

    url, rest = split_positional(arguments)
    parser = export_parser()
    settings = parse(parser, rest)
    if url is None:
        raise ConfigError(
            "Which checkpoint? Give its URL first, such as: shipline export runs/digits/best --to models/digits"
        )
    for name, value in _shorthands(settings).items():
        settings.recipe[name] = value
    recipe = build(parser, settings).recipe
    given = _given(url, settings)
    with workers(settings.workers) as executor:
        artifact = export(recipe=recipe, to=settings.to, version=settings.version, executor=executor, **given)
    if recipe.searches:
        show_candidates(artifact)
    show_verdicts(artifact)


def _given(url: str, settings: Namespace) -> dict[str, Any]:
    """Return what is exported, and what it is proved on: a run's own data, or texts from a file."""
    from shipline.export.huggingface import huggingface, is_pretrained
    from shipline.export.origins import opened

    if is_pretrained(url):
        if settings.rows is None:
            raise ConfigError(f"{url} is a language model. Give texts that it is proved on, a line each: --rows FILE.")
        return {"trained": huggingface(url, max_length=settings.max_length), "rows": _texts_in(settings.rows)}
    if settings.rows is not None or settings.max_length is not None:
        raise ConfigError(
            f"--rows and --max_length are for directories of Hugging Face's libraries, and {url} is none: a checkpoint "
            "is proved on the data of its run."
        )
    checkpoint = opened(url)
    module, data = named_by(settings.run_config or trusted_config(checkpoint), checkpoint)
    return {"trained": checkpoint, "module": module, "data": data}


def _texts_in(path: str) -> list[Any]:
    """Return the lines of a file, or the JSON values in one that ends in .jsonl."""
    if Path(path).suffix == ".jsonl":
        return [each.raw for each in inputs_of(path)]
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"Cannot read the texts in {path!r}: {error}. Give one with a text on each line.") from None
    return [line for line in lines if line.strip()]


def export_parser() -> ArgumentParser:
    """Return the parser of what an export needs besides the checkpoint."""
    parser = new_parser(
        "export",
        "Publish a checkpoint, or a language model's directory, given first, as an artifact, if it is proved equal to "
        "what was trained.",
    )
    parser.add_argument(
        "--rows",
        type=str | None,
        default=None,
        help="Texts that a language model is proved on: a file with one on each line, or .jsonl with JSON strings.",
    )
    parser.add_argument(
        "--max_length",
        type=int | None,
        default=None,
        help="Tokens of a language model's longest row; longer texts are cut. Default: what it was made for.",
    )
    parser.add_argument(
        "--run_config",
        type=str | None,
        default=None,
        help="YAML file of the training, which names module and data; default: the one in the run's directory, where "
        "that is on this machine.",
    )
    parser.add_argument(
        "--auto",
        action="store_true",
        help="Measure every precision and backend; publish the best. Short for --recipe.precision auto",
    )
    parser.add_argument(
        "--budget",
        type=str | None,
        default=None,
        help="What the metric may lose: a share such as 0.5%%, or its own unit. Short for --recipe.max_metric_drop",
    )
    parser.add_argument(
        "--prune",
        type=float | Literal["auto"] | None,
        default=None,
        help="Share of the channels to take out, after which it is trained on; auto: a search tries several. Short for "
        "--recipe.prune",
    )
    parser.add_argument(
        "--target",
        type=str | None,
        default=None,
        help="The machine that will serve, such as 20MB,5ms,avx2: largest file, longest time of a row, instructions. "
        "Short for --recipe.target",
    )
    parser.add_argument(
        "--workers",
        type=int | None,
        default=None,
        help="Make and judge the candidates of --auto in so many Ray workers at once, on the cluster that RAY_ADDRESS "
        "names, or one of their own. Times are measured on this machine all the same.",
    )
    add_export_options(parser)
    return parser


def workers(count: int | None) -> AbstractContextManager[Executor | None]:
    """Return the workers that were asked for, or none."""
    if count is None:
        return nullcontext()
    from shipline.train import RayExecutor

    return RayExecutor(count)


def _shorthands(settings: Namespace) -> dict[str, Any]:
    """The settings of the recipe that have a short name."""
    short: dict[str, Any] = {"precision": "auto"} if settings.auto else {}
    short |= {name: settings[name] for name in ("prune", "target") if settings[name] is not None}
    if settings.budget is not None:
        try:
            short["max_metric_drop"] = float(settings.budget)
        except ValueError:
            short["max_metric_drop"] = settings.budget
    return short


def add_export_options(parser: ArgumentParser) -> None:
    """Add where to publish, and how."""
    from shipline.export import Recipe

    parser.add_argument("--to", type=str, required=True, help="URL of the model, such as s3://bucket/models/digits.")
    parser.add_argument("--version", type=str | None, default=None, help="A number; default: one more than the newest.")
    parser.add_class_arguments(Recipe, "recipe")


def trusted_config(checkpoint: Checkpoint | LightningCheckpoint) -> str:
    """Return the configuration that names the checkpoint's class: on this machine's disk, written by the user's run.

    Raises:
        ConfigError: it is remote, or there is none. Text that comes from elsewhere does not choose which code runs.
    """
    if not isinstance(checkpoint, Checkpoint):
        raise ConfigError(f"Which class is {checkpoint.url} of? Give the training's file: --run_config train.yaml")
    config = Path(checkpoint.store.url).parent.parent / "config.yaml"
    if "://" in checkpoint.store.url:
        why = "its run's configuration is not on this machine"
    elif not config.is_file():
        why = "its run has no config.yaml"
    elif not {"module", "data"} <= read_file(str(config)).content.keys():
        why = "its run's config.yaml does not hold all of module and data"
    else:
        return str(config)
    raise ConfigError(
        f"Which class is {checkpoint} of? It says {checkpoint.manifest.module!r}, but {why}, and text in a checkpoint "
        "is not trusted to choose code. Give the training's file: --run_config train.yaml"
    )


def named_by(config: str, checkpoint: Checkpoint | LightningCheckpoint) -> tuple[Callable[..., Any], DataModule]:
    """Return what makes the module, and the data, that a training configuration names."""
    from shipline.compose import same_again
    from shipline.train.data.adopt import as_data

    sources = read_sources([], config)
    parser = train_parser("export", "", sources)
    settings = parse(parser, sources)
    check_links(settings, sources)
    objects = build(parser, settings)
    return same_again(objects.module, checkpoint), as_data(objects.module, objects.data)


def show_candidates(artifact: Artifact) -> None:
    """Print what a search has measured."""
    report = json.loads(artifact.read(REPORT_JSON))
    metric = report["metric"]["name"]
    table = Table(title="What was measured", title_justify="left")
    for column in ("candidate", metric, "bytes", "ms a batch", "outcome"):
        table.add_column(column)
    for each in report["candidates"]:
        score = f"{each['metrics'][metric]:.6g}" if metric in each["metrics"] else ""
        taken = ", ".join(f"{latency['median_ms']:.3g} of {latency['batch']}" for latency in each["latency"])
        table.add_row(each["name"], score, f"{each['bytes']:,}", taken, _outcome(each))
    console.print(table)
    for line in report["refused"]:
        console.print(line, highlight=False)


def _outcome(candidate: dict[str, Any]) -> str:
    failed = [verdict for verdict in candidate["verdicts"] if not verdict["passed"]]
    if candidate["chosen"]:
        return "published"
    if candidate["left_out"]:
        return f"not judged: {candidate['left_out']}"
    if failed:
        return f"failed {failed[0]['gate']}: {failed[0]['message']}"
    return "passed"


def show_verdicts(artifact: Artifact) -> None:
    """Print the verdicts of an artifact."""
    manifest = artifact.manifest
    table = Table(
        title=f"{manifest.name} version {manifest.version} ({manifest.precision} on {manifest.backend})",
        title_justify="left",
    )
    for column in ("gate", "", "what was found"):
        table.add_column(column)
    for verdict in manifest.verdicts:
        table.add_row(verdict.gate, "passed" if verdict.passed else "failed", verdict.message)
    console.print(table)
    console.print(f"Published: {artifact}", highlight=False, soft_wrap=True)
    if REPORT_HTML in manifest.files:
        console.print(f"Report:    {artifact}/{manifest.files[REPORT_HTML].key}", highlight=False, soft_wrap=True)
