"""Few bits for weights alone; activations stay float."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx

from shipline.errors import ConfigError
from shipline.export.passes.base import Material, Pass, quiet, refused


@dataclass(frozen=True, kw_only=True)
class WeightsOnly(Pass):
    """Weights of matrix products in 8 or 4 bits, a scale for each block; onnxruntime's MatMulNBits.

    Args:
        bits: 8 or 4.
        block_size: weights with one scale: 16, 32, 64, 128 or 256.
    """

    bits: Literal[4, 8] = 8
    block_size: int = 32

    precision: ClassVar[str] = "int8-weights"
    tolerance: ClassVar[float] = 5e-2

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.block_size not in (16, 32, 64, 128, 256):
            raise ConfigError(
                f"WeightsOnly has bits={self.bits!r}, block_size={self.block_size!r}; bits are 4 or 8, a block is of "
                "16, 32, 64, 128 or 256."
            )

    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the graph with packed weights; GateError where there is nothing to pack."""
        try:
            with quiet():  # already its import sets logging up
                from onnxruntime.quantization import matmul_nbits_quantizer as library

                config = library.DefaultWeightOnlyQuantConfig(
                    block_size=self.block_size, is_symmetric=True, bits=self.bits
                )
                quantiser = library.MatMulNBitsQuantizer(onnx.load_from_string(model), algo_config=config)
                quantiser.process()
            packed: onnx.ModelProto = quantiser.model.model
        except Exception as error:  # whatever the quantiser meets in a user's graph
            raise refused(f"int{self.bits} in its weights", error) from error
        if not any(node.op_type == "MatMulNBits" for node in packed.graph.node):
            raise refused(f"int{self.bits} in its weights", ValueError("it has no product with a matrix of weights"))
        return bytes(packed.SerializeToString())
