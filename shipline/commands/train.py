"""`shipline train`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from shipline.commands.console import console, split_positional
from shipline.commands.links import EXAMPLE, add_links, check_links
from shipline.commands.logs import log_to_terminal
from shipline.commands.submit import add_submit_options, submit, taken
from shipline.commands.trainer_options import add_trainer, import_named
from shipline.config import Sources, build, dumped, new_parser, parse, read_sources
from shipline.store import redact

if TYPE_CHECKING:
    from shipline.train import Run, Trainer

PRECEDENCE = (
    "Options override environment variables such as SHIPLINE_TRAINER__MAX_EPOCHS=3, which override files, which "
    "override defaults."
)
_SIGNALLED = (130, 143)  # what a process ends with after Ctrl-C and SIGTERM


def run(arguments: Sequence[str]) -> None:
    """Train as the file and the options say: here, or as a job of a cluster."""
    arguments = log_to_terminal(arguments)
    config, rest = split_positional(arguments)
    sources = read_sources(rest, config, os.environ)
    parser = train_parser("train", "Train a module. The first argument may be a YAML file.", sources)
    add_submit_options(parser)
    settings = parse(parser, sources)
    check_links(settings, sources)
    cluster, excludes = taken(settings)
    if cluster is not None:
        submit(cluster, excludes, parser, settings, sources)
        return
    objects = instantiate(parser, settings, settings.seed_everything)
    finished = fit(objects, dumped(parser, settings), sources, "--ckpt_path")
    if finished.best_url is not None and finished.url is not None and objects.trainer.is_global_zero:
        best, experiment = finished.best_url, finished.url.rpartition("/")[0]
        named = f"{experiment}/best" if best.startswith(f"{finished.url}/") else best
        console.print(f"Best checkpoint: {best}", highlight=False, soft_wrap=True)
        console.print(f"Next: shipline export {named} --to models/NAME", highlight=False, soft_wrap=True)


def train_parser(command: str, description: str, sources: Sources) -> ArgumentParser:
    """Return the parser of what makes a run: module, data, trainer, seed."""
    parser = new_parser(command, f"{description} {PRECEDENCE}")
    add_run_options(parser, sources)
    add_links(parser, sources)
    return parser


def add_run_options(parser: ArgumentParser, sources: Sources) -> None:
    """Add the options of module, data, trainer and seed."""
    from shipline.train import DataModule, Module
    from shipline.train.options.accepted import foreign

    import_named(sources.words)
    parser.add_argument("--seed_everything", type=int | None, default=None, help="Seed of every generator.")
    parser.add_argument("--import_path", type=list[str], default=[], help="More directories to import modules from.")
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="Checkpoint to go on from; or 'last', 'best', or 'auto': the last, if there is one yet.",
    )
    parser.add_argument(
        "--link", type=dict[str, str], default={},
        help=f"Arguments of the module that the data knows, in a file only, such as {{{EXAMPLE}}}.",
    )  # fmt: skip
    parser.add_subclass_arguments(
        (Module, foreign("LightningModule")), "module", required=True, help="Your Module: its class path and arguments."
    )
    parser.add_subclass_arguments(
        (DataModule, foreign("LightningDataModule")), "data", required=True,
        help="Your DataModule: its class path and arguments.",
    )  # fmt: skip
    add_trainer(parser)


def instantiate(parser: ArgumentParser, settings: Namespace, seed: int | None) -> Any:
    """Return the objects that the settings name; the seed is set before their weights are drawn."""
    from shipline.train import seed_everything

    if seed is not None:
        seed_everything(seed)
    return build(parser, settings)


def fit(objects: Any, settings: dict[str, Any], sources: Sources, resume: str) -> Run:
    """Train with the objects made from the settings; a run that is told to end says how to go on: by option `resume`.

    The settings are kept with the run, so that they can be trained again: from anywhere, and from the start where this
    run only went on.
    """
    trainer: Trainer = objects.trainer
    where = [*sources.directories, Path.cwd()]
    trainer.config = settings | {"import_path": list(dict.fromkeys(str(path.absolute()) for path in where))}
    if settings["ckpt_path"] in ("last", "best", "auto"):
        trainer.config["ckpt_path"] = None
    try:
        return trainer.fit(objects.module, datamodule=objects.data, ckpt_path=settings["ckpt_path"])
    except SystemExit as end:
        if end.code in _SIGNALLED:
            print(redact(_ended(trainer, resume)), file=sys.stderr)  # noqa: T201
        raise


def _ended(trainer: Trainer, resume: str) -> str:
    """Where a run that was told to end has been saved, and how to go on."""
    keeper, run = trainer.checkpoint_callback, trainer.run_directory
    if keeper is None or not keeper.last_model_path:
        return "Told to end; there is no checkpoint to go on from."
    url = keeper.last_model_path
    within = run is not None and url.startswith(f"{run.store.url}/")
    return f"Told to end; saved as {url}. To go on, repeat the command with {resume} {'last' if within else url}"
