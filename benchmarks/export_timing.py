"""Files of models, opened side by side in one process, each with one thread, and timed in turn."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

#: Of one file; and of all rounds together, after the first five.
MIN_ROUND_S, MAX_TOTAL_S, ROUNDS = 3e-3, 60.0, 60
#: Of the rounds the fastest tenth counts: what others do on the machine only ever makes a round slower.
SHARE = 10


@dataclass(frozen=True)
class Made:
    """A file to be measured.

    Args:
        name: who made it, and how.
        file: an ONNX graph or OpenVINO's IR.
        runtime: "onnxruntime" or "openvino".
        compute: what OpenVINO is told to compute in.
    """

    name: str
    file: Path
    runtime: str
    compute: str = "f32"

    @property
    def size(self) -> int:
        """Of the file, and of what lies beside it: weights."""
        beside = (self.file.with_suffix(".bin"), self.file.with_name(f"{self.file.name}_data"))
        return sum(each.stat().st_size for each in (self.file, *beside) if each.exists())

    def open(self) -> Opened:
        """Load it, for one thread."""
        return Opened(_onnxruntime(self.file) if self.runtime == "onnxruntime" else _openvino(self.file, self.compute))


class Opened:
    """A file that answers."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def answers(self, rows: Arrays, batch: int = 32) -> np.ndarray:
        """Those to all rows, in batches."""
        count = len(next(iter(rows.values())))
        parts = [self.run({name: array[i : i + batch] for name, array in rows.items()}) for i in range(0, count, batch)]
        return np.concatenate(parts)


def side_by_side(opened: dict[str, Opened], rows: Arrays, batch: int) -> dict[str, float]:
    """Return the milliseconds of each for one batch.

    They take turns, so that a machine whose speed drifts is equally unfair to all, in another order in each round:
    threads of one runtime may still be awake when the next file has its turn.
    """
    given = {name: np.resize(array, (batch, *array.shape[1:])) for name, array in rows.items()}
    repeats = {name: max(1, int(MIN_ROUND_S / _once(each, given, 2))) for name, each in opened.items()}
    taken: dict[str, list[float]] = {name: [] for name in opened}
    deadline, order = time.perf_counter() + MAX_TOTAL_S, random.Random(0)  # noqa: S311 -- no secret
    for done in range(ROUNDS):
        if done >= 5 and time.perf_counter() > deadline:
            break
        for name in order.sample(list(opened), len(opened)):
            taken[name].append(_once(opened[name], given, repeats[name]))
    return {name: float(np.percentile(times, SHARE)) * 1e3 for name, times in taken.items()}


def _once(opened: Opened, given: Arrays, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        opened.run(given)
    return (time.perf_counter() - began) / repeats


def _onnxruntime(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, given)[0]


def _openvino(file: Path, compute: str) -> Any:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": compute, "ENABLE_CPU_PINNING": False
    }  # fmt: skip
    request = openvino.Core().compile_model(str(file), "CPU", settings).create_infer_request()
    return lambda given: np.array(request.infer(given)[0])
