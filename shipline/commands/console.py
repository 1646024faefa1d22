"""What commands share: the terminal, and arguments that come before options."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

console = Console(markup=False)  # what comes from an artifact is shown as it is


def split_positional(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the first argument, where it is no option, and the rest."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)
