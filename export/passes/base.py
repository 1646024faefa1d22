"""What every pass is."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from shipline.backends.base import Arrays
from shipline.errors import GateError
from shipline.signature import Signature


@dataclass(frozen=True)
class Material:
    """What a pass may look at besides the graph.

    Args:
        signature: of the graph, before and after.
        calibration: returns training rows, by input name.
    """

    signature: Signature
    calibration: Callable[[], Arrays]


class Pass(ABC):
    """One step from an ONNX graph to another of the same signature. Its settings are its constructor's arguments."""

    #: What a graph is called that went through it, and what its outputs may differ by, in parts of their largest value.
    precision: ClassVar[str]
    tolerance: ClassVar[float]

    @abstractmethod
    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the new graph; the same one for the same graph and rows.

        Raises:
            GateError: the graph cannot go through; says why.
        """


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let libraries print nothing, and set nothing up for those who log, in the block."""
    root, own = logging.getLogger(), logging.NullHandler()
    handlers, level = root.handlers, root.level
    root.handlers = [own]  # with none, `logging.info` would make one that stays
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.handlers = handlers
        root.setLevel(level)


def refused(what: str, error: Exception) -> GateError:
    """Return the error for a graph on which a library gave up."""
    text = str(error).strip()[:800]
    return GateError(f"The graph cannot be made {what}, so nothing was published: {type(error).__name__}: {text}")
