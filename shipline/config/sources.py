"""Where settings come from. Each overrides those before it: files, in their order; the environment; the options."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shipline.config.files import File, read_file
from shipline.errors import ConfigError

PREFIX = "SHIPLINE_"
_CONFIG = f"{PREFIX}CONFIG"
_CLOSE = 0.85  # of a variable without two underscores, which may well be somebody else's
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Variable:
    """An environment variable, as the option that it stands for."""

    name: str
    option: str
    value: str


@dataclass(frozen=True)
class Sources:
    """All that was set.

    Args:
        files: the configuration files.
        options: the command line without them.
        environment: the variables of the process; empty for a command that does not look at them.
    """

    files: tuple[File, ...] = ()
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None

    @property
    def directories(self) -> list[Path]:
        """The directories of this machine to import modules from: those that files name, and those of the files."""
        beside = [file.path.parent for file in self.files if file.path is not None]
        return [*map(Path, _entries(self._given("import_path"))), *beside]

    def _given(self, option: str) -> Iterator[Any]:
        """What was given for an option of a training, wherever it stands in a file."""
        for file in self.files:
            for section in (file.content, file.content.get("train")):
                if isinstance(section, dict) and option in section:
                    yield section[option]
        yield from (value for name, value in (self.environment or {}).items() if name in _names_of(option))
        for index, argument in enumerate(self.options):
            name, equals, value = argument.removeprefix("--").partition("=")
            if argument.startswith("--") and name.removeprefix("train.").rstrip("+") == option:
                yield value if equals else next(iter(self.options[index + 1 :]), None)

    @property
    def words(self) -> set[str]:
        """Every word that stands in a file, an option or a variable."""
        texts = [*(file.text for file in self.files), *self.options, *(self.environment or {}).values()]
        return {word for text in texts for word in _WORD.findall(text)}

    def section(self, key: str) -> dict[str, Any]:
        """Return a section of the files, or all of them, later ones over earlier ones, before anything is checked."""
        merged: dict[str, Any] = {}
        for file in self.files:
            found = file.content.get(key) if key else file.content
            merged |= found if isinstance(found, dict) else {}
        return merged

    def arguments(self, variables: Iterable[Variable]) -> list[str]:
        """Return everything as options, the strongest last."""
        files = [f"--config={file.text if file.path is None else file.path}" for file in self.files]
        return [*files, *(f"{variable.option}={variable.value}" for variable in variables), *self.options]


def read_sources(
    arguments: Sequence[str], config: str | None = None, environment: Mapping[str, str] | None = None
) -> Sources:
    """Return the sources: the file `config`, those that the arguments name with `--config`, and what is said besides.

    Raises:
        ConfigError: a file is not there, or is no YAML mapping.
    """
    names, options = _split(arguments)
    first = [name for name in ((environment or {}).get(_CONFIG), config) if name is not None]
    return Sources(tuple(read_file(name) for name in (*first, *names)), tuple(options), environment)


def _names_of(option: str) -> tuple[str, str]:
    return variable_of(option), variable_of(f"train.{option}")


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files, and the other arguments; a `--config` without a value is left for the parser to refuse."""
    files, rest, given = [], [], iter(arguments)
    for argument in given:
        if argument == "--config" and (value := next(given, None)) is not None:
            files.append(value)
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    return files, rest


def _entries(values: Iterable[Any]) -> Iterator[str]:
    """The entries of lists, some of them still text, before anything is checked."""
    for value in values:
        read = value
        with contextlib.suppress(yaml.YAMLError, RecursionError):
            read = yaml.safe_load(value) if isinstance(value, str) else value
        yield from (entry for entry in (read if isinstance(read, list) else [read]) if isinstance(entry, str))


def variables(environment: Mapping[str, str] | None, options: Iterable[str]) -> list[Variable]:
    """Return the variables that stand for options: SHIPLINE_TRAINER__MAX_EPOCHS for trainer.max_epochs.

    Raises:
        ConfigError: one looks as if it did, and does not; the message names it.
    """
    known = [option for option in options if option not in ("config", "help")]
    return [
        Variable(name, f"--{key}", value)
        for name, value in sorted((environment or {}).items())
        if name.startswith(PREFIX) and (key := _key(name, known)) is not None
    ]


def _key(name: str, options: Sequence[str]) -> str | None:
    """The dotted option that a variable stands for; None where it is none of ours, as are those of Kubernetes."""
    parts = name.removeprefix(PREFIX).lower().split("__")
    top = {option.partition(".")[0] for option in options}
    if parts[0] in top and all(map(str.isidentifier, parts)):
        return ".".join(parts)
    meant = difflib.get_close_matches(parts[0], top, n=1, cutoff=_CLOSE if len(parts) == 1 else 0.6)
    if len(parts) == 1 and not meant:
        return None
    if within := [option.partition(".")[0] for option in options if option.split(".")[1:2] == parts[:1]]:
        meant = [f"{within[0]}.{parts[0]}"]  # what is trained stands in a section of the file of `shipline up`
    hint = f" Did you mean {variable_of('.'.join([*meant, *parts[1:]]))}?" if meant and all(parts) else ""
    raise ConfigError(
        f"The environment variable {name} names no option.{hint} Write two underscores for each dot, such as "
        f"{PREFIX}TRAINER__MAX_EPOCHS for trainer.max_epochs."
    )


def variable_of(option: str) -> str:
    """Return the name of the variable that stands for an option such as trainer.max_epochs."""
    return PREFIX + option.upper().replace(".", "__")
