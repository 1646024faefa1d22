"""What jsonargparse found wrong, in one sentence: its own messages list every type that a value could have had."""

from __future__ import annotations

import ast
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from shipline.errors import nearest
from shipline.plugins import load_target

_KEY = re.compile(r'Parser key "([^"]+)"')
_UNKNOWN = re.compile(
    r"(?:Group '(?P<group>[^']+)' does not accept option|Option) '(?P<name>[^']+)'(?: is not accepted)?"
    r"|unrecognized arguments: (?P<argument>[^\n]+)"
)
_NO_MODULE = re.compile(r"No module named '([^']+)'")
_NO_CLASS = re.compile(r"module '([^']+)' has no attribute '([^']+)'")
_CLASS_PATH = re.compile(r"Problem with given class_path '([^']+)'")
_CALLABLE_CLASS = re.compile(r"Got value: Namespace\(class_path='([^']+)'")
_NO_CLASS_PATH = re.compile(r"Not a valid subclass of .*Given value: \[?\{'(?!class_path|init_args)(\w+)'", re.DOTALL)
_NO_SUBCLASS = re.compile(r"Import path (?:([\w.]+) )?does not correspond to a subclass of (\w+)")
_NO_PATH = re.compile(r"Expected a dot import path string: ([^\W\d]\w*)\s*$", re.MULTILINE)
_SUBCLASSES = re.compile(r"known subclasses: ([^)]*)\)")
_EXPECTED = re.compile(
    r"(?:Expected an? |Expected a )(?!path but|dot import)(.+?)(?=\. Got value: | Given value: |\n|$)"
)
_CHOICES = re.compile(r"Literal\[(.*?)\]")
_GIVEN = re.compile(r"(?:Got value|Given value): (.*?)(?:\. Got value: .*)?\s*$", re.MULTILINE)
_NO_FILE = re.compile(r"Unable to load config [\"']([^\"']*)[\"']")
_NO_VALUE = re.compile(r"argument --([\w.]+)\S*: expected one argument")
_NESTED = re.compile(r"NestedArg\(key='[^']*', val=(.*)\)$")
_SCALAR = re.compile(r"Expected a <class '(?:int|float|str)'>")
_REQUIRED = re.compile(r"the following arguments are required: (.*)")
_NOISE = re.compile(
    r"^(Errors:|Subtypes:|Does not validate|Given value|Subclass types|- a |- ?Expected a path but|"
    r"- ?Problem with given class_path|- ?Not a valid subclass|- ?Expected a <class 'NoneType'>)"
)


@dataclass(frozen=True)
class Mistake:
    """What is wrong.

    Args:
        chain: the keys that lead to it.
        text: what is said of it.
        hint: the key or value that is wrong, by which its line is found.
        unknown: whether the hint is a key that nobody knows.
        meant: the chain of keys that was probably meant by it.
    """

    chain: tuple[str, ...]
    text: str
    hint: str | None = None
    unknown: bool = False
    meant: tuple[str, ...] | None = None


def mistake_of(error: ArgumentError, parser: ArgumentParser) -> Mistake:
    """Return what jsonargparse's error says."""
    message = str(error).replace('Parser key "config": ', "")
    chain = tuple(part for key in dict.fromkeys(_KEY.findall(message)) for part in key.split("."))
    if (text := _failed_import(error)) is not None:
        return Mistake(chain, text)
    if (found := _UNKNOWN.search(message)) and "required" not in found[0]:
        return _unknown(found, message, chain, parser)
    return _wrong_class(message, chain, parser) or _wrong_value(message, chain)


# ---- keys that nobody knows ------------------------------------------------------------------------------------------


def _unknown(found: re.Match[str], message: str, chain: tuple[str, ...], parser: ArgumentParser) -> Mistake:
    owners = _CLASS_PATH.findall(message[: found.start()])
    if owners:
        line = message[found.start() :].partition("\n")[0]
        owner = _CALLABLE_CLASS.search(line)
        known = [*arguments_of(owner[1] if owner else owners[-1]), "class_path", "init_args"]
        keys = tuple(part for key in dict.fromkeys(_KEY.findall(message[: found.start()])) for part in key.split("."))
        return _mistaken(keys, found["name"].partition(".")[0], known)
    if found["argument"]:
        return _unknown_argument(found["argument"], parser)
    full = f"{found['group']}.{found['name']}" if found["group"] else found["name"]
    return _unknown_option(full, parser)


def _unknown_argument(argument: str, parser: ArgumentParser) -> Mistake:
    name = argument.split()[0].partition("=")[0]
    if not name.startswith("--"):
        return Mistake((), f"there is no place for {name!r}: options begin with --.", name)
    return _unknown_option(name.removeprefix("--").rstrip("+"), parser)


def _unknown_option(full: str, parser: ArgumentParser) -> Mistake:
    """Find the first part of a dotted name that is not known where it stands."""
    options = option_names(parser)
    known, rest = "", full.split(".")
    while rest and any(option == known + rest[0] or option.startswith(f"{known}{rest[0]}.") for option in options):
        known, rest = f"{known}{rest[0]}.", rest[1:]
    name = rest[0] if rest else full
    beside = {option.removeprefix(known).partition(".")[0] for option in options if option.startswith(known)}
    mistake = _mistaken(tuple(known.split(".")[:-1]), name, beside)
    if mistake.meant is None and (found := nearest(name, (option.rpartition(".")[2] for option in options))):
        last = found.split("'")[1]
        whole = next(option for option in options if option.rpartition(".")[2] == last)
        text = f"unknown key {name!r}. Did you mean {whole!r}?"
        return Mistake(mistake.chain, text, name, unknown=True, meant=tuple(whole.split(".")))
    return mistake


def _mistaken(chain: tuple[str, ...], name: str, known: Iterable[str]) -> Mistake:
    hint = nearest(name, known)
    meant = (*chain, hint.split("'")[1]) if hint else None
    return Mistake(chain, f"unknown key {name!r}.{hint}", name, unknown=True, meant=meant)


def option_names(parser: ArgumentParser) -> list[str]:
    """Return the dotted names of a parser's options."""
    actions = parser._actions  # noqa: SLF001 -- argparse has no public list of them
    return [action.dest for action in actions if action.option_strings and "=" not in action.dest]


def arguments_of(class_path: str) -> list[str]:
    """Return the arguments of a class, those that it passes on to others included."""
    return option_names(_parser_of(class_path))


def _parser_of(class_path: str) -> ArgumentParser:
    """A parser of the arguments of a class."""
    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(load_target(f"{module}:{name}"), fail_untyped=False)
    return parser


# ---- classes that cannot be used -------------------------------------------------------------------------------------


def _wrong_class(message: str, chain: tuple[str, ...], parser: ArgumentParser) -> Mistake | None:
    if found := _NO_CLASS.search(message):
        hint = nearest(found[2], dir(sys.modules[found[1]]))
        return Mistake(chain, f"module {found[1]!r} has no class {found[2]!r}.{hint}", f"{found[1]}.{found[2]}")
    if found := _NO_MODULE.search(message):
        hint = nearest(found[1], _modules_at_hand())
        return Mistake(chain, f"there is no module {found[1]!r} to import.{hint}", found[1])
    if (found := _NO_PATH.search(message)) and not _SCALAR.search(_innermost(message)):
        return _no_class(found, message, chain, parser)
    if found := _NO_CLASS_PATH.search(message):
        return _mistaken(chain, found[1], ("class_path", "init_args"))
    block = _innermost(message)
    if (found := _NO_SUBCLASS.search(block)) and not _CLASS_PATH.search(block):
        given = found[1] or _given(block)
        return Mistake(chain, f"{given} is no subclass of {found[2]}.", given)
    return None


def _no_class(found: re.Match[str], message: str, chain: tuple[str, ...], parser: ArgumentParser) -> Mistake:
    """A name without a dot, which is no class of ours and no other thing that has a name."""
    name, owners, keys = found[1], _CLASS_PATH.findall(message[: found.start()]), _KEY.findall(message)
    names = _names(_innermost(message))
    classes = _classes(_parser_of(owners[-1]) if owners else parser, keys[-1] if keys else "")
    hint = nearest(name, (*names, *classes))
    if names and not any(repr(cls) in hint for cls in classes):
        known = sorted({*names, *classes})
        return Mistake(chain, f"unknown name {name!r}.{hint} Known: {', '.join(known)}; or a class.", name)
    return Mistake(chain, f"there is no class {name!r}.{hint} Give your own as module.{name}.", name)


def _names(text: str) -> list[str]:
    """The names among which a value could have been chosen."""
    found = [name for choices in _CHOICES.findall(text) for name in ast.literal_eval(f"[{choices}]")]
    return sorted(map(str, dict.fromkeys(found)))


def _modules_at_hand() -> list[str]:
    return [path.stem for entry in sys.path[:3] for path in Path(entry or ".").glob("*.py")]


def _classes(parser: ArgumentParser, key: str) -> list[str]:
    """The names of the classes that would do for an option, which its help lists."""
    option = parser.format_help().partition(f"  --{key} ")[2].partition("\n  --")[0]
    listed = _SUBCLASSES.search(" ".join(option.split()))
    paths = "" if listed is None else "".join(listed[1].split())
    return [path.rpartition(".")[2] for path in paths.split(",")]


def _failed_import(error: BaseException) -> str | None:
    """What a module of the user's raised while it was imported, and on which of its lines."""
    while (cause := error.__cause__) is not None:
        error = cause
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "<module>"]
    if isinstance(error, SyntaxError):
        place, what = f"{error.filename}:{error.lineno}", error.msg
    elif lines:
        place, what = f"{lines[0].filename}:{lines[0].lineno}", str(error)
    else:
        return None
    return f"the import failed at {place}: {type(error).__name__}: {what}"


# ---- values of the wrong type ----------------------------------------------------------------------------------------


def _wrong_value(message: str, chain: tuple[str, ...]) -> Mistake:
    if found := _REQUIRED.search(message):
        return Mistake(chain, found[0])
    if found := _NO_VALUE.search(message):
        return Mistake(tuple(found[1].split(".")), "its value is missing.")
    if found := _NO_FILE.search(message):
        return Mistake(chain, f"expected settings, or a YAML file of them, got {found[1]!r}.", found[1])
    block = _innermost(message)
    expected = list(dict.fromkeys(_readable(kind) for kind in _EXPECTED.findall(block)))
    if "Not a valid subclass" in block or "a dot import path" in block:
        expected = [*(kind for kind in expected if kind != "null"), "a class_path with init_args"]
    if not expected:
        return Mistake(chain, _essence(message))
    given = _given(block)
    shown = given if _is_literal(given) else repr(given)
    wanted = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
    return Mistake(chain, f"expected {wanted}, got {shown}.", given)


def _innermost(message: str) -> str:
    """The part of a message about the value itself: of an argument of a class, of an item of a list."""
    if len(keys := list(_KEY.finditer(message))) > 1:
        message = _indented(message[keys[-1].end() :])
    start = message.rfind("Does not validate against")
    return message if start < 0 else message[start:]


def _indented(text: str) -> str:
    """The lines after the first that are indented as the first of them is, or more."""
    lines = [line for line in text.splitlines()[1:] if line.strip()] or [text]
    depth = len(lines[0]) - len(lines[0].lstrip())
    kept = []
    for line in lines:
        if len(line) - len(line.lstrip()) < depth:
            break
        kept.append(line)
    return "\n".join(kept)


def _readable(kind: str) -> str:
    """A type as people say it."""
    if found := _CHOICES.search(kind):
        return " or ".join(map(repr, ast.literal_eval(f"[{found[1]}]")))
    name = kind.removeprefix("<class '").removesuffix("'>")
    return {"NoneType": "null", "collections.abc.Sequence": "list", "bool": "true or false"}.get(name, name)


def _given(text: str) -> str:
    found = _GIVEN.search(text)
    given = "" if found is None else found[1]
    nested = _NESTED.search(given)
    return (nested[1] if nested else given).strip("'")


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


def _essence(message: str) -> str:
    """The lines of a message that say what is wrong, without how the parser got there."""
    lines = [line.strip() for line in message.splitlines()]
    kept = [
        _KEY.sub("", line).lstrip("- :")
        for line in lines
        if line and not _NOISE.match(line) and not _KEY.fullmatch(line.rstrip(":"))
    ]
    return " ".join(filter(None, kept))
