"""4 bits for weights alone; activations stay float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx

from shipline.errors import ConfigError
from shipline.export.passes.base import GraphPass, Material, quiet, refused


@dataclass(frozen=True, kw_only=True)
class WeightsInt4(GraphPass):
    """Weights of matrix products in 4 bits, a scale for each block; onnxruntime's own MatMulNBits.

    Args:
        block_size: weights with one scale: 16, 32, 64, 128 or 256.
    """

    block_size: int = 32

    precision: ClassVar[str] = "int4-weights"
    tolerance: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        if self.block_size not in (16, 32, 64, 128, 256):
            raise ConfigError(f"WeightsInt4 has block_size={self.block_size!r}; it is 16, 32, 64, 128 or 256.")

    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the graph with packed weights; GateError where there is nothing to pack."""
        try:
            with quiet():  # already its import sets logging up
                from onnxruntime.quantization import matmul_nbits_quantizer as library

                config = library.DefaultWeightOnlyQuantConfig(block_size=self.block_size, is_symmetric=True, bits=4)
                quantiser = library.MatMulNBitsQuantizer(onnx.load_from_string(model), algo_config=config)
                quantiser.process()
            packed: onnx.ModelProto = quantiser.model.model
        except Exception as error:  # whatever the quantiser meets in a user's graph
            raise refused(self.precision, error) from error
        if not any(node.op_type == "MatMulNBits" for node in packed.graph.node):
            raise refused(self.precision, ValueError("it has no product with a matrix of weights"))
        return bytes(packed.SerializeToString())
