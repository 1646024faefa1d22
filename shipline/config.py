"""Settings from YAML files and the command line: jsonargparse reads them, and what it finds wrong is said briefly.

YAML is read safely (no tags), values are checked against type hints, classes are imported from the user's own path.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace  # type: ignore[attr-defined]

from shipline.errors import ConfigError, nearest
from shipline.plugins import load_target
from shipline.store import redact

_KEY = re.compile(r'Parser key "([^"]+)"')
_UNKNOWN = re.compile(
    r"does not accept option '(?P<a>[^']+)'|Option '(?P<b>[^']+)' is not accepted|unrecognized arguments: (?P<c>\S+)"
)
_NO_MODULE = re.compile(r"No module named '([^']+)'")
_NO_CLASS = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)'")
_NO_CLASS_PATH = re.compile(r"Not a valid subclass of .*Given value: \[?\{'(?!class_path|init_args)(\w+)'", re.DOTALL)
_NO_PATH = re.compile(r"Expected a dot import path string: (\S+)")
_EXPECTED = re.compile(r"^\s*Subtypes: (.*)$", re.MULTILINE)
_OURS = re.compile(r"shipline(?:\.\w+)+")
_NOISE = re.compile(
    r"^(Errors:|Subtypes:|Does not validate|Given value|- ?Expected a <class 'NoneType'>|- a |Subclass types|"
    r"- Problem with given class_path|- Parser key)"
)
_WRAPPED = ("Does not validate against", "Problem with given class_path")


def new_parser(command: str, description: str) -> ArgumentParser:
    """Return a parser for `shipline <command>`, whose options may also stand in a YAML file given with `--config`."""
    parser = ArgumentParser(
        prog=f"shipline {command}", description=description, exit_on_error=False, allow_abbrev=False, default_env=False
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of these options.")
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str], config: str | None = None) -> Namespace:
    """Return the settings from the YAML file `config`, if any, overridden by `arguments`.

    Modules are imported from the file's directory, its `import_path`, and the working directory, too.

    Raises:
        ConfigError: an unknown key, class or module, with the nearest known name; or a value of the wrong type.
    """
    if config is not None:
        if not Path(config).is_file():
            raise ConfigError(f"There is no configuration file {redact(config)!r}.")
        arguments = ["--config", config, *arguments]
    import_from([] if config is None else [*_import_path(Path(config)), Path(config).parent])
    where = f"{config}: " if config is not None else ""
    try:
        settings = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise ConfigError(redact(where + _explained(error, parser))) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{where}this is no readable YAML: {error}.") from error
    _check_sections(parser, settings, where)
    return settings


def _check_sections(parser: ArgumentParser, settings: Namespace, where: str) -> None:
    """A section that is empty or no mapping, such as `trainer:` with all its lines commented out, is not noticed."""
    for action in parser._actions:  # noqa: SLF001 -- argparse has no public list of them
        section, _, option = action.dest.rpartition(".")
        found = settings.get(section) if section else None
        if section and option != "help" and not isinstance(found, Namespace):
            raise ConfigError(f"{where}{section}: {found!r} holds no settings. Give some, or remove it.")


def import_from(directories: Iterable[Path]) -> None:
    """Let modules be imported from these directories and from the working directory, before any others."""
    for directory in (Path.cwd(), *directories):
        path = str(directory.absolute())
        if path not in sys.path:
            sys.path.insert(0, path)


def _import_path(config: Path) -> list[Path]:
    """The directories that a file names, needed before its classes are looked up. Bad YAML is the parser's error."""
    try:
        content = yaml.safe_load(config.read_text())
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError):
        return []
    path = content.get("import_path") if isinstance(content, dict) else None
    return [Path(entry) for entry in path if isinstance(entry, str)] if isinstance(path, list) else []


def build(parser: ArgumentParser, settings: Namespace) -> Any:
    """Return the objects that the settings name; where a constructor raises, its own error."""
    try:
        return parser.instantiate(settings)
    except ValueError as error:
        cause: BaseException = error
    while cause.__cause__ is not None and str(cause).startswith(_WRAPPED):
        cause = cause.__cause__
    raise cause


def plain(settings: Namespace) -> dict[str, Any]:
    """Return settings as plain data, without the name of the file that they came from."""
    content: dict[str, Any] = settings.clone().as_dict()
    content.pop("config", None)
    return content


def _explained(error: ArgumentError, parser: ArgumentParser) -> str:
    message = str(error)
    keys = dict.fromkeys(_KEY.findall(message))
    return (f"{'.'.join(keys)}: " if keys else "") + (_failed_import(error) or _what(message, parser))


def _failed_import(error: BaseException) -> str | None:
    """What a module of the user's raised while it was imported, and on which of its lines."""
    while (cause := error.__cause__) is not None:
        error = cause
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
        what = error.msg
    elif lines:
        place = f"{lines[0].filename}:{lines[0].lineno}"
        what = str(error)
    else:
        return None
    return f"the import failed at {place}: {type(error).__name__}: {what}"


def _what(message: str, parser: ArgumentParser) -> str:
    if found := _UNKNOWN.search(message):
        name = next(value for value in found.groups() if value is not None)
        owners = _CLASS_PATH.findall(message[: found.start()])
        known = _known_keys(parser, name, owners[-1] if owners else None)
        return f"unknown key {name!r}.{nearest(name, known) or nearest(name.partition('.')[0], known)}"
    if found := _NO_CLASS.search(message):
        return f"module {found[1]!r} has no class {found[2]!r}.{nearest(found[2], dir(sys.modules[found[1]]))}"
    if found := _NO_MODULE.search(message):
        return f"there is no module {found[1]!r} to import.{nearest(found[1], _modules_at_hand())}"
    if found := _NO_PATH.search(message):
        name = found[1]
        return f"there is no class {name!r}.{nearest(name, _classes(message))} Give your own as module.{name}."
    if found := _NO_CLASS_PATH.search(message):
        return f"unknown key {found[1]!r}.{nearest(found[1], ('class_path', 'init_args'))}"
    return _essence(message)


def _known_keys(parser: ArgumentParser, name: str, class_path: str | None) -> list[str]:
    """What could have been meant: the parameters of a class, or the options of the parser, spelled as `name` is."""
    if class_path is not None:
        module, _, attribute = class_path.rpartition(".")
        parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
        return [*parameters, "class_path", "init_args"]
    options = [action.dest for action in parser._actions]  # noqa: SLF001 -- argparse has no public list of them
    top = [option.partition(".")[0] for option in options]
    if name.startswith("--"):
        return [f"--{option}" for option in options]
    return [*options, *top, *(option.rpartition(".")[2] for option in options)]


def _modules_at_hand() -> list[str]:
    return [path.stem for entry in sys.path[:3] for path in Path(entry or ".").glob("*.py")]


def _classes(message: str) -> list[str]:
    """The names of the classes that would do: the subclasses of those that the message expects."""
    bases = {base for line in _EXPECTED.findall(message) for base in _OURS.findall(line)}
    found = [load_target(":".join(base.rsplit(".", 1))) for base in bases]
    for cls in found:  # grows while it is walked
        found.extend(cls.__subclasses__())
    return [cls.__name__ for cls in found]


def _essence(message: str) -> str:
    """The lines of a message that say what is wrong, without how the parser got there."""
    if len(set(_KEY.findall(message))) > 1:  # a parameter of a class; the other alternatives are about the class
        message = message.rpartition("Parser key ")[2].partition("\n    - ")[0].partition("\n")[2]
    lines = [line.strip() for line in message.splitlines()]
    kept = [
        line.removeprefix("- ")
        for line in lines
        if line and not _NOISE.match(line) and not _KEY.fullmatch(line.rstrip(":"))
    ]
    given = next((line for line in lines if line.startswith("Given value:")), "")
    return " ".join([*kept, given]).replace("Parser key ", "").strip()
