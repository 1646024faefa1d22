"""A table as text."""

from __future__ import annotations

from collections.abc import Sequence


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], shown: Sequence[int] | None = None) -> str:
    """Return the rows below their titles; the first column is to the left, numbers to the right.

    Args:
        titles: of the columns.
        rows: as many texts each.
        shown: the columns to show; default: all.
    """
    columns = range(len(titles)) if shown is None else shown
    lines = [[row[column] for column in columns] for row in (titles, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])
