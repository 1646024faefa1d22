"""Making files: of a module by a converter, of a graph by passes. Each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shipline import plugins
from shipline.export.apart import apart
from shipline.export.passes.base import GraphPass, Material
from shipline.export.trained import Trained


class Made(NamedTuple):
    """A file, and what passes noted down while they made it."""

    file: Path
    notes: dict[str, Any]


def convert(
    file: Path, trained: Trained, form: str, compute: Literal["float32", "bfloat16"], timeout: float
) -> dict[str, Any]:
    """Let the user's code be traced, and write what comes of it; GateError where nothing does."""
    converter = plugins.load("converter", form)

    def write() -> dict[str, Any]:
        file.write_bytes(converter(trained.module, trained.rows, trained.signature, compute))
        return {}

    made: dict[str, Any] = apart(write, f"Converting {type(trained.module).__name__} to {form}", timeout)
    return made


def go_through(file: Path, graph: bytes | Path, passes: Sequence[GraphPass], material: Material, timeout: float) -> Any:
    """Let a graph go through passes, and write what comes of it; return the notes. GateError where nothing does."""

    def write() -> dict[str, Any]:
        model = graph.read_bytes() if isinstance(graph, Path) else graph
        for each in passes:
            model = each.apply(model, material)
        file.write_bytes(model)
        return material.notes

    return apart(write, f"Making the graph {passes[-1].precision}", timeout)
