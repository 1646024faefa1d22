"""8 bits where they cost little."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx

from shipline.backends.base import Arrays
from shipline.errors import ConfigError
from shipline.export.passes.base import Material
from shipline.export.passes.sensitivity import Sweep
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.passes.weights_int8 import shrink

SWEPT_ROWS, COMPARED_ROWS = 8, 64
LARGE_TABLE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class MixedInt8(StaticInt8):
    """Products and convolutions as in StaticInt8, but for those that suffer most, which stay float.

    All are ranked by what the answers lose where each is rounded alone. Then a bisection looks for the fewest, the most
    sensitive first, that have to stay float for the answers to calibration rows to be near enough. Everything else of
    the graph stays float, which is what transformers need; large tables of embeddings become int8, too, with a scale
    for each row, which costs little.

    Args:
        near: how near: the length of the difference of outputs, in parts of the outputs' length.
        most_float: the share of the nodes that may stay float.
    """

    op_types: tuple[str, ...] = ("Conv", "Gemm", "MatMul")
    near: float = 0.1
    most_float: float = 0.5

    rounds_outputs: ClassVar[bool] = False  # else what stays float would take rounded inputs

    precision: ClassVar[str] = "int8-mixed"
    tolerance: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("near", "most_float"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
                raise ConfigError(f"MixedInt8 has {name}={value!r}; set a number above 0, up to 1.")

    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the quantised graph; GateError where it cannot be."""
        graph = onnx.load_from_string(super().apply(model, material))
        shrink(graph.graph, LARGE_TABLE, ("Gather",))
        return bytes(graph.SerializeToString())

    def _write(self, prepared: str, small: str, rows: Arrays, material: Material) -> None:
        """Write the quantised graph: scales are measured once, and the sweep's graph stands in for all trials."""
        scales = f"{prepared}.json"
        self._quantise(prepared, small, rows, self.keep_float, scales)
        sweep = Sweep(prepared, small, self.op_types, {name: array[:COMPARED_ROWS] for name, array in rows.items()})
        found = _sensitivity(sweep)
        order = [each["node"] for each in found]
        most = int(self.most_float * len(order))
        if (least := sweep.error(order[most:])) > self.near:
            raise ValueError(
                f"with {most} of {len(order)} nodes left float, answers to calibration rows still differ by "
                f"{least:.2g} of their length; {self.near:g} is near enough"
            )
        count = bisect_left(range(most), 1, key=lambda count: sweep.error(order[count:]) <= self.near)
        if count:
            self._quantise(prepared, small, rows, (*self.keep_float, *order[:count]), scales)
        material.notes["sensitivity"] = [{**each, "float": i < count} for i, each in enumerate(found)]


def _sensitivity(sweep: Sweep) -> list[dict[str, Any]]:
    """Each node, with the error of the answers where it alone is rounded; the most sensitive first."""
    found = [
        {"node": name, "op_type": kind, "error": sweep.error((name,), SWEPT_ROWS)} for name, kind in sweep.nodes.items()
    ]
    return sorted(found, key=lambda each: -float(each["error"]))
