"""The backend that will serve, as export drives it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.errors import GateError
from shipline.export.kept import Kept
from shipline.export.outputs import Structure
from shipline.export.rows import bind, digests
from shipline.signature import Signature


class Runs(Protocol):
    """What answers batches."""

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """Return the outputs, in order, for inputs with a batch dimension."""
        ...


class Once:
    """Answers as another does, which it asks but once for each batch, where there is room to keep the answer."""

    def __init__(self, other: Runs) -> None:
        self._other, self._kept = other, Kept[list[np.ndarray]]()

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """Return the outputs, in order, for inputs with a batch dimension."""
        return self._kept.answer(tuple(digests(list(inputs.values()))), lambda: self._other.run(inputs))


class Runtime:
    """A graph loaded on this machine, with the settings that the artifact will carry."""

    def __init__(self, model: bytes, settings: ServingSettings, backend: str = "onnxruntime") -> None:
        self._name = backend
        backend_class: type[Backend] = plugins.load("backend", backend)
        try:
            self._backend = backend_class.load(model, settings)
        except Exception as error:  # onnxruntime has a type for each of its codes, such as NotImplemented
            raise GateError(f"{backend} cannot load the graph, so nothing was published: {error}") from error

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """Return the outputs, in order, for inputs with a batch dimension."""
        try:
            return list(self._backend.run(inputs).values())
        except Exception as error:
            shapes = {name: list(array.shape) for name, array in inputs.items()}
            raise GateError(
                f"{self._name} cannot run the graph on {shapes}, so nothing was published: {error}"
            ) from error

    def forward_for(
        self,
        module: nn.Module,
        signature: Signature,
        structure: Structure,
        trim: Callable[[Arrays], Arrays] = lambda rows: rows,
    ) -> Callable[..., Any]:
        """Return a function to put in place of the module's forward: same arguments, same structure of outputs.

        What it is given is trimmed first: to what the longest of its rows needs, where rows differ in length.
        """
        original = module.forward
        names = [spec.name for spec in signature.inputs]

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = bind(original, args, kwargs)
            outputs = self.run(trim({name: given[name].detach().cpu().numpy() for name in names}))
            self._check_shapes(outputs, signature, len(given[names[0]]))
            return structure.filled([torch.from_numpy(output) for output in outputs])

        return forward

    def _check_shapes(self, outputs: list[np.ndarray], signature: Signature, rows: int) -> None:
        """Of what a user's code computes a metric with, which expects those of the module."""
        for spec, output in zip(signature.outputs, outputs, strict=True):
            if not spec.matches(output.shape) or len(output) != rows:
                raise GateError(
                    f"{self._name} answers {rows} rows with {spec.name!r} of shape {list(output.shape)}, and the "
                    f"module's is {list(spec.shape)}, so nothing was published."
                )

    def close(self) -> None:
        """Give back what the backend took: this object, then, answers no more."""
        self._backend.close()
        del self._backend
        _give_back_memory()


def _give_back_memory() -> None:
    """Let the system have what is free in this process: glibc keeps it for later, and a search would keep much."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
