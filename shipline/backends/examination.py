"""A plain model file looked at and run once, in a process of its own: the file may be anybody's, and end that process.

    python -m shipline.backends.examination model.onnx

prints what was found out as JSON: signature, largest batch, and a size that free dimensions may have; or the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays
from shipline.backends.onnx import OnnxBackend
from shipline.backends.trial import limit_memory
from shipline.signature import BYTES, DYNAMIC, Signature, TensorSpec, zeros

# How large dimensions that may have any size are tried: a convolution takes none of the smallest.
SIZES = (1, 8, 32, 224)

_DTYPES = {
    "bool": "bool", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64", "int8": "int8",
    "int16": "int16", "int32": "int32", "int64": "int64", "float16": "float16", "float": "float32",
    "double": "float64", "string": BYTES,
}  # fmt: skip


def examine(file: str) -> dict[str, Any]:
    """Return what is found out; whatever onnxruntime raises, or a ValueError that says what the graph lacks."""
    limit_memory()
    session = onnxruntime.InferenceSession(Path(file).read_bytes(), providers=["CPUExecutionProvider"])
    inputs = tuple(_spec(value) for value in session.get_inputs())
    fixed = {value.shape[0] for value in session.get_inputs() if isinstance(value.shape[0], int)} - {1}
    if fixed:
        raise ValueError(f"its batch is always {fixed.pop()}; export it with a dynamic first dimension.")
    free = not any(isinstance(value.shape[0], int) for value in session.get_inputs())
    rows, size, outputs = _tried(session, inputs, (2, 1) if free else (1,))
    declared = {value.name: value.shape for value in session.get_outputs()}
    specs = tuple(_output(name, array, declared[name]) for name, array in outputs.items())
    return {
        "signature": Signature(inputs=inputs, outputs=specs).model_dump(mode="json"),
        "max_batch_size": ServingSettings().max_batch_size if rows == 2 else 1,
        "size": size,
    }


def _tried(session: Any, specs: tuple[TensorSpec, ...], rows: tuple[int, ...]) -> tuple[int, int, Arrays]:
    """Return how many rows, and free dimensions of which size, the graph takes, and what it gives for zeros."""
    backend, error = OnnxBackend(session), ValueError("its outputs do not have the batch as their first dimension.")
    for count in rows:
        for size in SIZES:
            try:
                outputs = backend.run(zeros(specs, count, size))
            except Exception as found:
                error = ValueError(f"it fails on zeros: {str(found)[:200]}")
                continue
            if all(array.ndim and len(array) == count for array in outputs.values()):
                return count, size, outputs
    raise error


def _spec(value: Any) -> TensorSpec:
    if not value.shape:
        raise ValueError(f"its input {value.name!r} has no batch dimension.")
    sizes = [size if isinstance(size, int) and size > 0 else DYNAMIC for size in value.shape[1:]]
    return TensorSpec(name=value.name, dtype=_dtype(value), shape=(DYNAMIC, *sizes))


def _output(name: str, array: np.ndarray, declared: list[Any]) -> TensorSpec:
    given = declared if len(declared) == array.ndim else [None] * array.ndim
    sizes = [size if isinstance(size, int) and size > 0 else DYNAMIC for size in given[1:]]
    return TensorSpec(name=name, dtype=array.dtype.name, shape=(DYNAMIC, *sizes))


def _dtype(value: Any) -> str:
    kind = str(value.type).removeprefix("tensor(").removesuffix(")")
    if kind not in _DTYPES:
        raise ValueError(f"its input {value.name!r} is {value.type}, which requests cannot carry.")
    return _DTYPES[kind]


if __name__ == "__main__":
    try:
        answer = examine(sys.argv[1])
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {str(error)[:400]}"}
    sys.stdout.write(json.dumps(answer))
