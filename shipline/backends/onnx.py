"""onnxruntime on the CPU."""

from __future__ import annotations

from typing import Self

import onnxruntime

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.backends.cores import cores


class OnnxBackend(Backend):
    """An onnxruntime session, with the settings that the artifact was proved with."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        """Return a session for the graph; it needs no other file."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = min(settings.threads, cores())
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return cls(onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]))

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name."""
        return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
