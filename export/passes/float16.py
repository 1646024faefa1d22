"""16 bits for everything inside the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from shipline.export.passes.base import GraphPass, Material, quiet, refused


@dataclass(frozen=True, kw_only=True)
class Float16(GraphPass):
    """Weights and activations as float16; inputs and outputs stay what they are.

    Half the size. onnxruntime's CPU kernels convert to float32 and back, so it is rarely faster there.
    """

    precision: ClassVar[str] = "float16"
    tolerance: ClassVar[float] = 5e-3

    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the converted graph; GateError where it cannot be."""
        try:
            with quiet():  # of weights that are too small or too large the gates will see
                from onnxruntime.transformers.float16 import convert_float_to_float16

                graph = convert_float_to_float16(onnx.load_from_string(model), keep_io_types=True)
        except Exception as error:  # whatever the converter meets in a user's graph
            raise refused("float16", error) from error
        return bytes(graph.SerializeToString())
