"""onnxruntime's quantisers, which read a file and write one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from onnxruntime.quantization.shape_inference import quant_pre_process

from shipline.export.passes.base import quiet, refused


def quantised(model: bytes, precision: str, quantise: Callable[[str, str], None]) -> tuple[bytes, bytes]:
    """Return the graph as it was prepared for quantising, and as `quantise` made it of the one file in the other.

    Raises:
        GateError: it cannot be done.
    """
    with tempfile.TemporaryDirectory(prefix="shipline-int8-") as scratch:
        plain, prepared, small = (Path(scratch) / name for name in ("plain.onnx", "prepared.onnx", "int8.onnx"))
        plain.write_bytes(model)
        try:
            with quiet():
                quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
                quantise(str(prepared), str(small))
        except Exception as error:  # whatever the quantiser meets in a user's graph
            raise refused(precision, error) from error
        return prepared.read_bytes(), small.read_bytes()
