"""`shipline list`: what can be named in settings, with what other packages add."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from shipline.commands.console import console, printable
from shipline.config import new_parser, parse
from shipline.errors import ConfigError, MissingExtraError, nearest
from shipline.plugins import BUILT_IN, known, load


def _plural(kind: str) -> str:
    if kind.endswith("y"):
        return f"{kind.removesuffix('y')}ies"
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


_PLURALS = {_plural(kind): kind for kind in BUILT_IN}


def run(arguments: Sequence[str]) -> None:
    """Print a table of the plug-ins of a kind, or of the kinds."""
    parser = new_parser("list", f"List what has a name: {_all()}.")
    parser.add_argument("kind", type=str | None, nargs="?", default=None, help="Of what; default: how many of each.")
    asked = parse(parser, arguments).kind
    console.print(_kinds() if asked is None else _plugins(_kind(asked)))


def _kind(asked: str) -> str:
    if asked not in _PLURALS and asked not in BUILT_IN:
        raise ConfigError(f"There is no list of {asked!r}.{nearest(asked, _PLURALS)} Known: {_all()}.")
    return _PLURALS.get(asked, asked)


def _all() -> str:
    return ", ".join(sorted(_PLURALS))


def _kinds() -> Table:
    table = _table("kind", "names")
    for plural, kind in sorted(_PLURALS.items()):
        table.add_row(plural, printable(", ".join(sorted(known(kind)))))
    return table


def _plugins(kind: str) -> Table:
    table = _table("name", "class", "what it does")
    for name, target in sorted(known(kind).items()):
        table.add_row(*map(printable, (name, target.replace(":", "."), _what(kind, name))))
    return table


def _table(*columns: str) -> Table:
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    return table


def _what(kind: str, name: str) -> str:
    """The first line of the class's documentation, or why it cannot be imported: one broken package hides no other."""
    try:
        documentation = load(kind, name).__doc__
    except MissingExtraError as error:
        return str(error)
    except Exception as error:  # whatever another package raises
        return f"It cannot be imported: {type(error).__name__}: {error}"
    return (documentation or "").strip().partition("\n")[0]
