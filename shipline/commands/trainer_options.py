"""The Trainer's options on the command line: each by its type; what has a name in a registry also by that."""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Sequence
from typing import Any, Literal

import docstring_parser
from jsonargparse import ArgumentParser

from shipline.plugins import known, load

#: The kinds of plug-ins that a run can be configured with.
KINDS = ("accelerator", "callback", "logger", "profiler", "strategy")


def add_trainer(parser: ArgumentParser) -> None:
    """Add the options `--trainer.*`."""
    from shipline.train import Trainer
    from shipline.train.settings import Settings

    types = _types()
    parser.add_class_arguments(Trainer, "trainer", skip=set(types))
    said = {each.arg_name: each.description for each in docstring_parser.parse(Settings.__doc__ or "").params}
    assert parser.groups is not None
    for name, (kind, default) in types.items():
        parser.groups["trainer"].add_argument(f"--trainer.{name}", type=kind, default=default, help=said[name])


def _types() -> dict[str, tuple[Any, Any]]:
    """The types and defaults of the options that take a class or a name.

    The constructor's own types have `str`, which would take a misspelled class for a name.
    """
    from shipline.train.accelerators import Accelerator
    from shipline.train.accepted import foreign
    from shipline.train.callbacks import Callback
    from shipline.train.loggers import Logger
    from shipline.train.profilers import Profiler
    from shipline.train.strategies import Strategy

    logger: Any = _either(Logger, foreign("Logger"), *_names("logger"))
    callback: Any = _either(Callback, foreign("Callback"), *_names("callback"))
    return {
        "accelerator": (_either(*_names("accelerator", "auto"), Accelerator), "auto"),
        "strategy": (_either(*_names("strategy", "auto"), Strategy), "auto"),
        "logger": (_either(bool, logger, Sequence[logger], None), None),
        "callbacks": (_either(Sequence[callback], callback, None), None),
        "profiler": (_either(Profiler, *_names("profiler"), None), None),
    }


def _either(*kinds: Any) -> Any:
    return functools.reduce(operator.or_, kinds)


def _names(kind: str, *others: str) -> list[Any]:
    """The names of a kind, as a type; but for those that are the names of classes, which are found as such."""
    names = [name for name, target in known(kind).items() if target.rpartition(":")[2] != name]
    return [Literal[(*others, *sorted(names))]] if names or others else []


def import_named(words: Collection[str]) -> None:
    """Import the plug-ins whose class is among the words: only imported classes can be named without their module."""
    for kind in KINDS:
        for name, target in known(kind).items():
            if target.rpartition(":")[2] in words:
                load(kind, name)
