"""What the scripts of all peers share: each makes files of a float32 graph, one for each of its ways."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Row = dict[str, np.ndarray]


@dataclass(frozen=True)
class Given:
    """What a way starts from: the float32 graph, rows to measure scales on, and whether it is a transformer."""

    graph: Path
    rows: Row
    transformer: bool

    def each(self) -> Iterator[Row]:
        """The rows, one by one, each as a batch."""
        for i in range(len(next(iter(self.rows.values())))):
            yield {name: array[i : i + 1] for name, array in self.rows.items()}


class Reader:
    """The rows, as calibration of onnxruntime asks for them."""

    def __init__(self, given: Given) -> None:
        self._given, self._rows = given, given.each()

    def rewind(self) -> None:
        self._rows = self._given.each()

    def get_next(self) -> Row | None:
        return next(self._rows, None)


def main(ways: dict[str, Callable[[Given, Path], None]]) -> None:
    """Go each way; where one fails, the reason is written in the place of the file."""
    folder, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    given = Given(folder / "float32.onnx", dict(np.load(folder / "calibration.npz")), kind == "transformer")
    for name, make in ways.items():
        try:
            make(given, out / name)
        except BaseException as error:
            traceback.print_exc()
            (out / f"{name}.error").write_text(f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
