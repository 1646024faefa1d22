"""`shipline up`: the whole path from one file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from jsonargparse import ActionParser, ArgumentParser, Namespace

from shipline.artifact import Artifact
from shipline.commands.console import split_positional
from shipline.commands.export import add_export_options, show_verdicts
from shipline.commands.links import add_links, check_links
from shipline.commands.logs import log_to_terminal
from shipline.commands.serve import add_server_options, check_server, serve_as_set
from shipline.commands.train import PRECEDENCE, add_run_options, fit, instantiate
from shipline.config import Sources, dumped, new_parser, parse, read_sources
from shipline.errors import ConfigError


def run(arguments: Sequence[str]) -> None:
    """Train, export, and serve until a signal."""
    arguments = log_to_terminal(arguments)
    config, rest = split_positional(arguments)
    sources = read_sources(rest, config, os.environ)
    parser = up_parser(sources)
    if not sources.files and not {"-h", "--help"} & set(rest):
        raise ConfigError("From which file? Give it first, such as: shipline up shipline.yaml")
    settings = parse(parser, sources)
    check_links(settings.train, sources, "train")
    check_server(settings.serve)  # before anything is trained
    artifact = publish(parser, settings, sources)
    show_verdicts(artifact)
    serve_as_set(artifact.url, settings.serve, [*settings.serve.trust, artifact.url])  # which has just been written


def up_parser(sources: Sources) -> ArgumentParser:
    """Return the parser of the whole file."""
    parser = new_parser("up", f"Train, export and serve, as a YAML file, given first, says. {PRECEDENCE}")
    train, export, serve = ArgumentParser(), ArgumentParser(), ArgumentParser()
    add_run_options(train, sources)
    add_export_options(export)
    add_server_options(serve)
    parser.add_argument("--train", action=ActionParser(parser=train))
    parser.add_argument("--export", action=ActionParser(parser=export))
    parser.add_argument("--serve", action=ActionParser(parser=serve))
    add_links(parser, sources, "train")
    return parser


def publish(parser: ArgumentParser, settings: Namespace, sources: Sources) -> Artifact:
    """Train and export as the settings say."""
    from shipline.compose import export

    objects = instantiate(parser, settings, settings.train.seed_everything)
    finished = fit(objects.train, dumped(parser, settings)["train"], sources, "--train.ckpt_path")
    return export(finished, objects.export.recipe, to=settings.export.to, version=settings.export.version)
