"""TorchScript on the CPU."""

from __future__ import annotations

import io
import warnings
from typing import ClassVar, Self

import torch

from shipline.artifact import ServingSettings
from shipline.backends.torch import SIGNATURE, TorchBackend, damaged


class TorchScriptBackend(TorchBackend):
    """A program in TorchScript.

    Its archive holds `data.pkl`, which torch reads with a reader of its own in C++: that knows tensors, containers and
    the classes that the archive's own TorchScript defines, and imports nothing from Python. The program itself can call
    every operator of torch, also those that read and write files, so it counts as code.
    """

    format: ClassVar[str] = "torchscript"
    model_file: ClassVar[str] = "model.ts"

    @classmethod
    def load(cls, model: bytes, settings: ServingSettings) -> Self:
        """Return the program; it needs no other file."""
        extra = {SIGNATURE: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of all of torch.jit, since torch 2.13
            program = torch.jit.load(io.BytesIO(model), map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
        if not extra[SIGNATURE]:
            raise damaged(cls.model_file, f"no {SIGNATURE}")
        return cls.of(lambda tensors: program(*tensors), extra[SIGNATURE], settings)
