"""What a graph uses where."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def used(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the name of a tensor for each of its uses, those in branches and loops included."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from used(inner)
