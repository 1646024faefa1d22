"""Where a mistake stands: the line of a file, the variable, or the option."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import yaml

from shipline.config.files import File
from shipline.config.sources import Sources, Variable

_BETWEEN = ("init_args", "dict_kwargs")  # what stands between a class and its arguments, and may be left out of options


@dataclass(frozen=True)
class Place:
    """Where something was set: `kind` says where, `name` which line, variable or option; that of a whole `chain`."""

    kind: Literal["file", "variable", "option"]
    name: str
    chain: tuple[str, ...] = ()


def locate(
    sources: Sources, variables: Sequence[Variable], chain: Sequence[str], hint: str | None = None
) -> Place | None:
    """Return where the option with this chain of keys was set last, with the key or value `hint` where there is one.

    None where nobody set it.
    """
    places = [*_options(sources.options), *_variables(variables)]
    for found, value in places:
        if found.chain[: len(chain) + 1] == (*chain, hint) or (
            found.chain == tuple(chain) and (hint is None or _holds(value, hint))
        ):
            return found
    for found, value in places:  # a part of what a whole section or class was set to
        if hint is not None and found.chain == tuple(chain[: len(found.chain)]) and _holds(value, hint):
            return found
    found_lines = [(file, line, exact) for file in reversed(sources.files) for line, exact in _lines(file, chain, hint)]
    for file, line, _ in sorted(found_lines, key=lambda entry: not entry[2]):
        return Place("file", f"{file.name}:{line}")
    return None


def _options(options: Sequence[str]) -> Iterator[tuple[Place, str]]:
    """The options from the last to the first, and their values."""
    for index in range(len(options) - 1, -1, -1):
        name, equals, value = options[index].partition("=")
        if name.startswith("--"):
            following = options[index + 1] if index + 1 < len(options) and not equals else value
            yield Place("option", name, _chain(name)), following


def _variables(variables: Sequence[Variable]) -> Iterator[tuple[Place, str]]:
    for variable in reversed(variables):
        yield Place("variable", variable.name, _chain(variable.option)), variable.value


def _chain(option: str) -> tuple[str, ...]:
    parts = option.removeprefix("--").rstrip("+").split(".")
    return tuple(part for part in parts if part not in (*_BETWEEN, "class_path"))


def _holds(value: str, hint: str) -> bool:
    return hint.lower() in value.lower() or (hint == "None" and value == "null")


def _lines(file: File, chain: Sequence[str], hint: str | None) -> Iterator[tuple[int, bool]]:
    """The line of the hint below the chain of keys, or that of the chain; and whether it is the hint's."""
    for key, value in _below([(None, file.root)], chain):
        named = None if hint is None else next(_children(value, hint), (None, value))[0]
        if named is not None:
            yield named.start_mark.line + 1, True
        elif hint is not None and (line := _line_of(value, hint, set())) is not None:
            yield line, True
        elif key is not None:
            yield key.start_mark.line + 1, hint is None


Entry = tuple[yaml.Node | None, yaml.Node]


def _below(entries: list[Entry], chain: Sequence[str]) -> list[Entry]:
    """What stands under a chain of keys: items of lists and arguments of classes need no key."""
    for part in chain:
        entries = [found for _, node in entries for found in _children(node, part)]
    return entries


def _children(node: yaml.Node, part: str) -> Iterator[Entry]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _children(item, part)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                yield key, value
            elif key.value in _BETWEEN:
                yield from _children(value, part)


def _line_of(node: yaml.Node, hint: str, seen: set[int]) -> int | None:
    """The line of the first key or value that is the hint."""
    if isinstance(node, yaml.ScalarNode):
        return node.start_mark.line + 1 if _is(node.value, hint) else None
    if id(node) in seen:
        return None
    seen.add(id(node))
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    return next((line for part in parts if (line := _line_of(part, hint, seen)) is not None), None)


def _is(text: str, hint: str) -> bool:
    return text.lower() == hint.lower() or text.startswith(f"{hint}.") or (hint == "None" and text in ("", "null", "~"))
