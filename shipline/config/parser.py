"""The parser of a command, and the objects that its settings name.

YAML is read safely (no tags), values are checked against type hints, classes are imported from the user's own path.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace  # type: ignore[attr-defined]

from shipline.config.mistakes import mistake_of, option_names
from shipline.config.places import Place, locate
from shipline.config.sources import Sources, Variable, read_sources, variable_of, variables
from shipline.errors import ConfigError
from shipline.store import redact

_WRAPPED = ("Does not validate against", "Problem with given class_path", "Call to compute_fn of link")


def new_parser(command: str, description: str) -> ArgumentParser:
    """Return a parser for `shipline <command>`, whose options may also stand in a YAML file given with `--config`."""
    parser = ArgumentParser(
        prog=f"shipline {command}", description=description, exit_on_error=False, allow_abbrev=False, default_env=False
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="YAML file or URL with any of these options. Of several, those that come later override the others.",
    )
    return parser


def parse(parser: ArgumentParser, given: Sequence[str] | Sources) -> Namespace:
    """Return the settings from all sources: defaults < files < environment < options.

    Modules are imported from the files' directories, their `import_path`, and the working directory, too.

    Raises:
        ConfigError: an unknown key, class or module, with the nearest known name; or a value of the wrong type. The
            message says where it was set.
    """
    sources = given if isinstance(given, Sources) else read_sources(given)
    import_from(sources.directories)
    set_by_environment = variables(sources.environment, option_names(parser))
    try:
        settings = parser.parse_args(sources.arguments(set_by_environment))
    except ArgumentError as error:
        raise ConfigError(redact(_explained(error, parser, sources, set_by_environment))) from error
    except RecursionError as error:
        raise ConfigError(f"{_files(sources)}this is no readable YAML: {error}.") from error
    _check_sections(parser, settings, sources)
    return settings


def _files(sources: Sources) -> str:
    return f"{', '.join(file.name for file in sources.files)}: " if sources.files else ""


def _explained(error: ArgumentError, parser: ArgumentParser, sources: Sources, given: Sequence[Variable]) -> str:
    mistake = mistake_of(error, parser)
    place = locate(sources, given, mistake.chain, mistake.hint)
    key = f"{'.'.join(mistake.chain)}: " if mistake.chain else ""
    if place is None:
        return f"{_files(sources)}{key}{mistake.text}"
    if place.kind == "file":
        return f"{place.name}: {key}{mistake.text}"
    depth = len(mistake.chain) + 1
    if mistake.unknown and place.chain[:depth] == (*mistake.chain, mistake.hint):
        return _unknown(place, mistake.meant and (*mistake.meant, *place.chain[depth:]))
    within = ".".join(mistake.chain[len(place.chain) :])
    return ": ".join(filter(None, [place.name, within, mistake.text]))


def _unknown(place: Place, meant: tuple[str, ...] | None) -> str:
    """Name an unknown variable or option, and the one that was meant, in full."""
    if meant is None:
        return f"unknown {place.kind} {place.name}."
    full = variable_of(".".join(meant)) if place.kind == "variable" else f"--{'.'.join(meant)}"
    return f"unknown {place.kind} {place.name}. Did you mean {full}?"


def _check_sections(parser: ArgumentParser, settings: Namespace, sources: Sources) -> None:
    """A section that is empty or no mapping, such as `trainer:` with all its lines commented out, is not noticed."""
    for option in option_names(parser):
        section, _, name = option.rpartition(".")
        found = settings.get(section) if section else None
        if section and name != "help" and not isinstance(found, Namespace):
            place = locate(sources, (), section.split("."))
            where = f"{place.name}: " if place is not None else _files(sources)
            raise ConfigError(f"{where}{section}: {found!r} holds no settings. Give some, or remove it.")


def import_from(directories: Iterable[Path]) -> None:
    """Let modules be imported from these directories and from the working directory, before any others."""
    for directory in (Path.cwd(), *directories):
        path = str(directory.absolute())
        if path not in sys.path:
            sys.path.insert(0, path)


def build(parser: ArgumentParser, settings: Namespace) -> Any:
    """Return the objects that the settings name; where a constructor raises, its own error."""
    try:
        return parser.instantiate(settings)
    except ValueError as error:
        cause: BaseException = error
    while cause.__cause__ is not None and str(cause).startswith(_WRAPPED):
        cause = cause.__cause__
    raise cause


def dumped(parser: ArgumentParser, settings: Namespace) -> dict[str, Any]:
    """Return settings as the plain data that a file would hold, from which the same settings can be read again."""
    content: dict[str, Any] = yaml.safe_load(parser.dump(settings, skip_unset=False, skip_validation=True))
    return content
