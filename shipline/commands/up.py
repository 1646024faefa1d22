"""`shipline up`: the whole path from one file."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ActionParser, ArgumentParser, Namespace

from shipline.artifact import Artifact
from shipline.commands.console import split_positional
from shipline.commands.export import add_export_options, show_verdicts
from shipline.commands.logs import log_to_terminal
from shipline.commands.train import fit, instantiate, train_parser
from shipline.config import new_parser, parse
from shipline.errors import ConfigError


def run(arguments: Sequence[str]) -> None:
    """Train, export, and serve until a signal."""
    arguments = log_to_terminal(arguments)
    config, rest = split_positional(arguments)
    parser = up_parser()
    if config is None:
        if {"-h", "--help"} & set(rest):
            parser.print_help()
            return
        raise ConfigError("From which file? Give it first, such as: shipline up shipline.yaml")
    settings = parse(parser, rest, config)
    artifact = publish(parser, settings, config)
    show_verdicts(artifact)
    from shipline.plugins import load_target

    load_target("shipline.serve.server:serve")(artifact.url, host=settings.serve.host, port=settings.serve.port)


def up_parser() -> ArgumentParser:
    """Return the parser of the whole file."""
    parser = new_parser("up", "Train, export and serve, as a YAML file, given first, says; options override it.")
    export = ArgumentParser()
    add_export_options(export)
    parser.add_argument("--train", action=ActionParser(parser=train_parser("up", "")))
    parser.add_argument("--export", action=ActionParser(parser=export))
    parser.add_argument("--serve.host", type=str, default="127.0.0.1", help="Address to listen on.")
    parser.add_argument("--serve.port", type=int, default=8000, help="Port to listen on; 0 is any free one.")
    return parser


def publish(parser: ArgumentParser, settings: Namespace, config: str) -> Artifact:
    """Train and export as the settings, which come from the file `config`, say."""
    from shipline.compose import export

    objects = instantiate(parser, settings, settings.train.seed_everything)
    finished = fit(objects.train, settings.train, config)
    return export(finished, objects.export.recipe, to=settings.export.to, version=settings.export.version)
