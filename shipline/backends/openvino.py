"""OpenVINO on the CPU."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any, Self, cast

import numpy as np

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.backends.cores import cores
from shipline.errors import InputError


@contextlib.contextmanager
def _unseen(package: str) -> Iterator[None]:
    """Let no import in the block find the package, unless somebody has imported it before."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = cast(Any, None)
    try:
        yield
    finally:
        del sys.modules[package]


with _unseen("openvino_telemetry"):  # OpenVINO tells its makers of every import, where it finds what does so
    import openvino

_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_SMALLEST, _LARGEST = np.iinfo(np.int32).min, np.iinfo(np.int32).max


class OpenVinoBackend(Backend):
    """An ONNX graph compiled by OpenVINO, with the settings that the artifact was proved with."""

    def __init__(self, model: openvino.CompiledModel, names: list[str]) -> None:
        self._model, self._names = model, names
        self._own = threading.local()  # a request for each thread

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        """Return the compiled graph; it needs no other file."""
        threads = min(settings.threads, cores())
        streams = max(cores() // threads, 1)  # batches that run at once
        core = openvino.Core()
        graph = core.read_model(model=model, weights=b"")
        names = [output.get_any_name() for output in graph.outputs]
        compiled = core.compile_model(
            graph,
            "CPU",
            {
                # Left alone, it computes float32 graphs in bfloat16 wherever the processor can.
                "INFERENCE_PRECISION_HINT": _HINTS[settings.compute],
                "INFERENCE_NUM_THREADS": threads * streams,
                "NUM_STREAMS": streams,
                "ENABLE_CPU_PINNING": False,
            },
        )
        return cls(compiled, names)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name."""
        request = getattr(self._own, "request", None)
        if request is None:
            request = self._own.request = self._model.create_infer_request()
        rows = len(next(iter(inputs.values())))
        computed = some_rows(rows)
        given = {name: _fitting(name, array, computed) for name, array in inputs.items()}
        results = request.infer(given, share_inputs=True, share_outputs=False)
        return {name: array[:rows] for name, array in zip(self._names, results.values(), strict=True)}


def some_rows(rows: int) -> int:
    """Return how many rows a batch of so many is computed as: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32 ...

    For each shape that it sees, OpenVINO keeps kernels of its own, of int8 transformers 8 MB in each stream.
    """
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if rows <= power * 3 // 4 else power


def _fitting(name: str, array: np.ndarray, rows: int) -> np.ndarray:
    """Return the array as OpenVINO takes it: of so many rows, in one piece, and without numbers that it would cut.

    Whole numbers it computes in 32 bits, without a word.

    Raises:
        InputError: there are some.
    """
    if array.dtype.kind in "iu" and array.dtype.itemsize >= 4 and array.size:
        for value in (int(array.min()), int(array.max())):
            if not _SMALLEST <= value <= _LARGEST:
                raise InputError(
                    f"{name!r} holds {value}; OpenVINO computes whole numbers in 32 bits on a CPU. "
                    "Send smaller ones, or export with backend='onnxruntime'."
                )
    return np.ascontiguousarray(array if len(array) == rows else np.resize(array, (rows, *array.shape[1:])))
