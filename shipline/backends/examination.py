"""A plain model file looked at and run once, in a process of its own: the file may be anybody's, and end that process.

    python -m shipline.backends.examination model.onnx

prints what was found out as JSON: signature, largest batch, the batch at which a row costs least, and a size that free
dimensions may have; or the error.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays
from shipline.backends.onnx import OnnxBackend, session_options
from shipline.backends.trial import limit_memory
from shipline.signature import BYTES, DYNAMIC, Signature, TensorSpec, zeros

# The largest batch at which a row costs hardly more than at the best is preferred. What takes longer is not tried.
ENOUGH, TRIES, LONGEST_S = 0.98, 2, 0.25
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
    options = session_options(ServingSettings())
    session = onnxruntime.InferenceSession(Path(file).read_bytes(), options, providers=["CPUExecutionProvider"])
    inputs = tuple(_spec(value) for value in session.get_inputs())
    fixed = {value.shape[0] for value in session.get_inputs() if isinstance(value.shape[0], int)} - {1}
    if fixed:
        raise ValueError(f"its batch is always {fixed.pop()}; export it with a dynamic first dimension.")
    free = not any(isinstance(value.shape[0], int) for value in session.get_inputs())
    rows, size, outputs = _tried(session, inputs, (2, 1) if free else (1,))
    declared = {value.name: value.shape for value in session.get_outputs()}
    specs = tuple(_output(name, array, declared[name]) for name, array in outputs.items())
    largest = ServingSettings().max_batch_size if rows == 2 else 1
    return {
        "signature": Signature(inputs=inputs, outputs=specs).model_dump(mode="json"),
        "max_batch_size": largest,
        "preferred_batch_size": _preferred(OnnxBackend(session), inputs, size, largest),
        "size": size,
    }


def _preferred(backend: OnnxBackend, specs: tuple[TensorSpec, ...], size: int, largest: int) -> int | None:
    """Return how many rows of zeros a batch should have; None where trying it out takes too long, or fails.

    A batch that leaves the processor's caches is slower by the row than a smaller one. It is the CPU's time that
    counts, so that it does not matter who else is busy.
    """
    costs: dict[int, float] = {}
    rows = 1
    while rows <= largest:
        inputs = zeros(specs, rows, size)
        try:
            took = min(_cpu_seconds(backend, inputs) for _ in range(TRIES))
        except Exception:
            return None
        if took > LONGEST_S:
            return None
        costs[rows] = took / rows
        rows *= 2
    return max(rows for rows, cost in costs.items() if cost * ENOUGH <= min(costs.values()))


def _cpu_seconds(backend: OnnxBackend, inputs: Arrays) -> float:
    began = time.process_time()
    backend.run(inputs)
    return time.process_time() - began


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
