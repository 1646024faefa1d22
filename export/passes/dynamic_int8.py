"""8 bits for weights, and for activations with scales that are measured in each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxruntime.quantization import QuantType, quantize_dynamic

from shipline.export.passes.base import GraphPass, Material
from shipline.export.passes.quantiser import quantised
from shipline.export.processor import cuts_sums


@dataclass(frozen=True, kw_only=True)
class DynamicInt8(GraphPass):
    """int8 weights; each call finds one scale for an activation of the whole batch.

    So a row's answer depends on its batch-mates, which the gate of batch invariance measures, and mostly refuses.

    Args:
        per_channel: a scale for each channel of a weight.
        reduce_range: 7 bits for weights, as `StaticInt8` explains.
        op_types: quantise only these operators.
    """

    per_channel: bool = True
    reduce_range: bool | None = None
    op_types: tuple[str, ...] = ("MatMul", "Gemm", "Gather")

    precision: ClassVar[str] = "int8-dynamic"
    tolerance: ClassVar[float] = 5e-2

    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the quantised graph; GateError where it cannot be."""

        def quantise(prepared: str, small: str) -> None:
            quantize_dynamic(
                prepared,
                small,
                per_channel=self.per_channel,
                reduce_range=cuts_sums() if self.reduce_range is None else self.reduce_range,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(self.op_types),
            )

        return quantised(model, self.precision, quantise)[1]
