"""`shipline train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from shipline.commands.console import console, split_positional
from shipline.commands.logs import log_to_terminal
from shipline.config import build, new_parser, parse, plain

if TYPE_CHECKING:
    from shipline.train import Run, Trainer


def run(arguments: Sequence[str]) -> None:
    """Train as the file and the options say."""
    arguments = log_to_terminal(arguments)
    parser = train_parser("train", "Train a module. The first argument may be a YAML file; options override it.")
    config, rest = split_positional(arguments)
    settings = parse(parser, rest, config)
    finished = fit(instantiate(parser, settings, settings.seed_everything), settings, config)
    if finished.best_url is not None and finished.url is not None:
        experiment = finished.url.rpartition("/")[0]
        console.print(f"Best checkpoint: {finished.best_url}", highlight=False, soft_wrap=True)
        console.print(f"Next: shipline export {experiment}/best --to models/NAME", highlight=False, soft_wrap=True)


def train_parser(command: str, description: str) -> ArgumentParser:
    """Return the parser of what makes a run: module, data, trainer, seed."""
    from shipline.train import DataModule, Module, Trainer

    parser = new_parser(command, description)
    parser.add_argument("--seed_everything", type=int | None, default=None, help="Seed of every generator.")
    parser.add_argument("--import_path", type=list[str], default=[], help="More directories to import modules from.")
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None, help="Checkpoint to go on from; or 'last' or 'best'."
    )
    parser.add_subclass_arguments(Module, "module", required=True, help="Your Module: its class path and arguments.")
    parser.add_subclass_arguments(
        DataModule, "data", required=True, help="Your DataModule: its class path and arguments."
    )
    parser.add_class_arguments(Trainer, "trainer")
    return parser


def instantiate(parser: ArgumentParser, settings: Namespace, seed: int | None) -> Any:
    """Return the objects that the settings name; the seed is set before their weights are drawn."""
    from shipline.train import seed_everything

    if seed is not None:
        seed_everything(seed)
    return build(parser, settings)


def fit(objects: Any, settings: Namespace, config: str | None) -> Run:
    """Train with the objects made from the settings, which come from the file `config`."""
    here = [] if config is None else [str(Path(config).parent.absolute())]
    trainer: Trainer = objects.trainer
    trainer.config = plain(settings) | {"import_path": [*settings.import_path, *here]}
    return trainer.fit(objects.module, datamodule=objects.data, ckpt_path=settings.ckpt_path)
