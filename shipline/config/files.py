"""A file of settings, here or at any URL: read, and refused with its line where it is no YAML mapping."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shipline.errors import ConfigError, NotFoundError, StoreError
from shipline.store import Store, open_store, redact, split

_SUFFIXES = (".yaml", ".yml", ".json")
_REMOTE = re.compile(r"[^?#]+://[^?#]+/[^?#/]+")
_DATE = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """YAML without tags that run code, and without dates: a version such as 2026-13-01 is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


@dataclass(frozen=True)
class File:
    """A file of settings.

    Args:
        name: as it was given, without credentials.
        text: what it holds.
        root: the same, with the line of each key.
        content: the same, as plain data.
        path: where it is on this machine; None where it is elsewhere.
    """

    name: str
    text: str
    root: yaml.MappingNode
    content: dict[str, Any]
    path: Path | None


def read_file(url: str) -> File:
    """Return the file of a path or URL.

    Raises:
        ConfigError: there is none, or it is no YAML mapping; the message says which line, or what is there instead.
        StoreError: the store cannot be reached, or refuses us.
    """
    name = redact(url)
    path = None if "://" in url.removeprefix("file://") else Path(url.removeprefix("file://"))
    data = _remote(url) if path is None else _local(path, name)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: this is no readable YAML: {error}.") from error
    root, content = _parsed(text, name)
    return File(name, text, root, content, path)


def _local(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        beside = path.parent.iterdir() if path.parent.is_dir() else ()
        raise _not_found(path.name, name, [entry.name for entry in beside]) from None
    except OSError as error:
        raise ConfigError(f"The configuration file {name!r} cannot be read: {error.strerror}.") from error


def _remote(url: str) -> bytes:
    if not _REMOTE.fullmatch(url):
        raise ConfigError(
            f"{redact(url)!r} is no URL of a file: give one such as s3://bucket/train.yaml, without a query."
        )
    parent, key = split(url)
    try:
        store = open_store(parent)
        return store.read(key)
    except NotFoundError:
        raise _not_found(key, redact(url), _listed(store)) from None
    except (ImportError, OSError) as error:
        raise ConfigError(f"The configuration file {redact(url)!r} cannot be read: {redact(str(error))}.") from error


def _listed(store: Store) -> list[str]:
    try:
        return store.list()
    except StoreError:  # the bucket is missing, or does not let itself be listed
        return []


def _not_found(key: str, name: str, beside: list[str]) -> ConfigError:
    files = {entry.rpartition(".")[0]: entry for entry in sorted(beside) if entry.endswith(_SUFFIXES)}
    near = difflib.get_close_matches(key.rpartition(".")[0] or key, files, n=1)
    hint = f" Did you mean {files[near[0]]!r}?" if near else ""
    if files and not near:
        hint = f" Beside it: {', '.join([*files.values()][:5])}."
    return ConfigError(f"There is no configuration file {name!r}.{hint}")


def _parsed(text: str, name: str) -> tuple[yaml.MappingNode, dict[str, Any]]:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        content = None if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise ConfigError(f"{name}{line}: this is no readable YAML: {error.problem}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}: this is no readable YAML: {' '.join(str(error).split())}.") from error
    if root is None or content is None:
        raise ConfigError(f"{name} is empty: there are no settings in it.")
    if not isinstance(root, yaml.MappingNode) or not isinstance(content, dict):
        raise ConfigError(f"{name} is no mapping of options to values: it holds {text.strip()[:60]!r}.")
    for first, second in _twice(root, set()):
        lines = [key.start_mark.line + 1 for key in (first, second)]
        raise ConfigError(
            f"{name}:{lines[1]}: {second.value!r} stands here and on line {lines[0]}; only one would count. Put them "
            "together."
        )
    return root, content


def _twice(node: yaml.Node, seen: set[int]) -> Iterator[tuple[yaml.ScalarNode, yaml.ScalarNode]]:
    """The keys that a mapping has twice; YAML would take the last one without a word."""
    if id(node) in seen:  # a list that holds itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: dict[str, yaml.ScalarNode] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys and key.value != "<<":
                    yield keys[key.value], key
                keys[key.value] = key
            yield from _twice(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _twice(item, seen)
