"""The code on a page of the documentation."""

from __future__ import annotations

import re

from helpers import ROOT


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a language, of `docs/<page>.md`."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def classes(page: str) -> str:
    """All that the page's Python blocks define, as one module."""
    return "\n\n".join(blocks(page, "python"))
