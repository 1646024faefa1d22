"""`shipline`, but its onnxruntime backend keeps 64 KiB of every batch: the soak must find that out."""

from __future__ import annotations

import sys

from shipline.backends.base import Arrays
from shipline.backends.onnx import OnnxBackend
from shipline.commands import main

KEPT: list[bytes] = []
run = OnnxBackend.run


def leaking(self: OnnxBackend, inputs: Arrays) -> Arrays:
    KEPT.append(bytes(bytearray(64 << 10)))
    return run(self, inputs)


OnnxBackend.run = leaking  # type: ignore[method-assign]
sys.exit(main(sys.argv[1:]))
