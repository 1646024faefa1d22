"""What every backend is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np

from shipline.artifact import ServingSettings

Arrays = dict[str, np.ndarray]


class Backend(ABC):
    """Runs one graph. `run` may be called from several threads at once."""

    #: The name of the converter that makes what `load` takes, and that of the file that an artifact keeps it in.
    format: ClassVar[str] = "onnx"
    model_file: ClassVar[str] = "model.onnx"
    #: Whether such a file can do more than compute: a server then loads it only from where its operator trusts it.
    runs_code: ClassVar[bool] = False
    #: What it computes on.
    device: ClassVar[str] = "cpu"

    @classmethod
    @abstractmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        """Return the backend for a graph, whose bytes were checked against their digest."""

    @abstractmethod
    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name; inputs and outputs have a batch dimension.

        Raises:
            InputError: it cannot compute with these values, and whoever sent them is to know.
        """

    @property
    def available(self) -> bool:
        """Whether batches are taken now."""
        return True

    def close(self) -> None:  # noqa: B027 -- nothing to give back is the common case
        """Give back what `load` took."""
