"""onnxruntime on a GPU of NVIDIA's, by CUDA or TensorRT.

Needs the package `onnxruntime-gpu` in the place of `onnxruntime`. Which GPU it is, CUDA_VISIBLE_DEVICES says.
https://onnxruntime.ai/docs/execution-providers
"""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import onnxruntime

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays
from shipline.backends.onnx import OnnxBackend, session_options
from shipline.errors import ConfigError

_CUDA = "CUDAExecutionProvider"
# Without this, convolutions and products of float32 are computed in TF32: ten bits where the trained module had 23.
_CUDA_OPTIONS = {"use_tf32": "0"}


class BoundOnnxBackend(OnnxBackend):
    """A session whose tensors are bound to a device's memory: each is copied there once, and each answer back once."""

    #: What computes, and where its tensors lie, in onnxruntime's words.
    provider: ClassVar[str]
    memory: ClassVar[str] = "cuda"

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        """Return a session for the graph on the device.

        Raises:
            ConfigError: onnxruntime has nothing for this device here, or it does not start.
        """
        if cls.provider not in onnxruntime.get_available_providers():
            raise ConfigError(
                f"The device {cls.device!r} needs an onnxruntime with {cls.provider}, and the one that is installed "
                f"has {', '.join(onnxruntime.get_available_providers())}. Install onnxruntime-gpu in its place, or "
                "serve on the device 'cpu'."
            )
        providers = cls._providers(model, settings)  # and the CPU for what they cannot: it always is the last
        session = onnxruntime.InferenceSession(model, session_options(settings), providers=providers)
        if cls.provider not in session.get_providers():  # it does not raise, and goes on without
            raise ConfigError(
                f"{cls.provider} does not start here, so the device {cls.device!r} cannot be served on: is there a "
                "GPU, and are the libraries of CUDA that onnxruntime was built for installed?"
            )
        return cls(session)

    @classmethod
    def _providers(cls, model: bytes, settings: ServingSettings) -> list[tuple[str, dict[str, str]]]:
        """Return what computes, the first for all that it can, and its options."""
        del model, settings
        return [(cls.provider, {})]

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name."""
        if self._texts:  # text does not go to a device
            return super().run(inputs)
        binding = self._session.io_binding()
        for name, array in inputs.items():
            there = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.memory, 0)
            binding.bind_ortvalue_input(name, there)
        for name in self._names:
            binding.bind_output(name, self.memory, 0)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return dict(zip(self._names, binding.copy_outputs_to_cpu(), strict=True))


class CudaBackend(BoundOnnxBackend):
    """CUDA's kernels, in full float32."""

    device = "cuda"
    provider = _CUDA

    @classmethod
    def _providers(cls, model: bytes, settings: ServingSettings) -> list[tuple[str, dict[str, str]]]:
        del model, settings
        return [(_CUDA, _CUDA_OPTIONS)]


class TensorRtBackend(BoundOnnxBackend):
    """An engine that TensorRT builds when the model is loaded, for every batch up to the largest."""

    device = "tensorrt"
    provider = "TensorrtExecutionProvider"

    @classmethod
    def _providers(cls, model: bytes, settings: ServingSettings) -> list[tuple[str, dict[str, str]]]:
        return [(cls.provider, batch_profile(model, settings)), (_CUDA, _CUDA_OPTIONS)]


def batch_profile(model: bytes, settings: ServingSettings) -> dict[str, str]:
    """Return the sizes of batches that an engine is built for, as TensorRT's options.

    Without them it is built anew, for seconds, whenever a larger batch comes. Graphs with other free dimensions have
    none: their sizes are known only when they come.
    """
    graph = onnxruntime.InferenceSession(model, session_options(settings), providers=["CPUExecutionProvider"])
    inputs = graph.get_inputs()
    if not all(isinstance(size, int) for value in inputs for size in value.shape[1:]):
        return {}
    best = min(settings.preferred_batch_size or settings.max_batch_size, settings.max_batch_size)
    rows = {"min": 1, "opt": best, "max": settings.max_batch_size}
    return {
        f"trt_profile_{bound}_shapes": ",".join(
            f"{value.name}:{'x'.join(str(size) for size in [count, *value.shape[1:]])}" for value in inputs
        )
        for bound, count in rows.items()
    }
