"""What commands share: the terminal, and arguments that stand among options."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

console = Console(markup=False)  # what comes from an artifact is shown as it is

_FLAGS = ("--help", "--print_config", "--auto")  # every other option takes a value


def split_positional(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the first argument that is neither an option nor an option's value, and the others."""
    takes_value = False
    for index, argument in enumerate(arguments):
        if not argument.startswith("-") and not takes_value:
            return argument, [*arguments[:index], *arguments[index + 1 :]]
        takes_value = argument.startswith("--") and "=" not in argument and argument not in _FLAGS
    return None, list(arguments)


def printable(text: str) -> str:
    r"""Return text with control characters spelled out, as `\x1b`: text from elsewhere must not move the cursor."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
