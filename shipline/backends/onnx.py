"""onnxruntime on the CPU."""

from __future__ import annotations

from typing import Self

import numpy as np
import onnxruntime

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.backends.cores import cores
from shipline.errors import InputError


class OnnxBackend(Backend):
    """An onnxruntime session, with the settings that the artifact was proved with."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._texts = [value.name for value in session.get_inputs() if value.type == "tensor(string)"]

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        """Return a session for the graph; it needs no other file."""
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(model, session_options(settings), providers=providers)
        session._model_bytes = None  # noqa: SLF001 -- kept for a fallback to other providers: as much memory again
        return cls(session)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name; text as Python's."""
        if self._texts:
            inputs = inputs | {name: _decoded(name, inputs[name]) for name in self._texts}
        return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))


def session_options(settings: ServingSettings) -> onnxruntime.SessionOptions:
    """Return what every session of ours is opened with."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(settings.threads, cores())
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # its errors are raised; to write them, too, it would wait for who reads them
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _decoded(name: str, array: np.ndarray) -> np.ndarray:
    """Return bytes as text, which is what onnxruntime's strings are; InputError where they are none."""
    texts = np.empty(array.shape, object)
    try:
        texts.ravel()[:] = [value.decode() if isinstance(value, bytes) else value for value in array.ravel()]
    except UnicodeDecodeError:
        raise InputError(f"{name!r} holds bytes that are no UTF-8, and this model takes text.") from None
    return texts
