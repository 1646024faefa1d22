"""onnxruntime, as the server will run it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.utils import _pytree as pytree

from shipline.artifact import ServingSettings
from shipline.errors import GateError
from shipline.export.rows import Arrays, bind
from shipline.signature import Signature


class Runtime:
    """A session on this machine's CPU, with the settings that the artifact will carry."""

    def __init__(self, model: bytes, settings: ServingSettings) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = min(settings.threads, os.cpu_count() or 1)
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a type for each of its codes, such as NotImplemented
            raise GateError(f"onnxruntime cannot load the graph, so nothing was published: {error}") from error

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        """Return the outputs, in order, for inputs with a batch dimension."""
        try:
            return list(self._session.run(None, inputs))
        except Exception as error:
            shapes = {name: list(array.shape) for name, array in inputs.items()}
            raise GateError(
                f"onnxruntime cannot run the graph on {shapes}, so nothing was published: {error}"
            ) from error

    def forward_for(self, module: nn.Module, signature: Signature, structure: pytree.TreeSpec) -> Callable[..., Any]:
        """Return a function to put in place of the module's forward: same arguments, same structure of outputs."""
        original = module.forward
        names = [spec.name for spec in signature.inputs]

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = bind(original, args, kwargs)
            outputs = self.run({name: given[name].detach().cpu().numpy() for name in names})
            return pytree.tree_unflatten([torch.from_numpy(output) for output in outputs], structure)

        return forward
