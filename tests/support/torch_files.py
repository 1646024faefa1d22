"""Files for the backends that run on torch, made by their converters; each once, since a compiler takes its time."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import artifacts
import numpy as np
import torch
from small_modules import record
from torch import nn
from torch._C import PyTorchFileReader, PyTorchFileWriter

from shipline import plugins
from shipline.artifact import Artifact
from shipline.backends.base import Arrays
from shipline.export.signature import signature_of
from shipline.signature import Signature, TensorSpec

FORMATS = ("torchscript", "torch-export", "aotinductor")
RANDOM = np.random.default_rng(0)


class Mixed(nn.Module):
    """Floats, whole numbers and truths in and out; an index that is not in the table is a poison row."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(1)
        self.weight, self.table = (
            nn.Parameter(torch.from_numpy(random.standard_normal(shape, np.float32))) for shape in ((4, 3), (5, 2))
        )

    def forward(self, x: torch.Tensor, ids: torch.Tensor, keep: torch.Tensor, index: torch.Tensor) -> Any:
        return {
            "y": torch.relu(x @ self.weight),
            "kept": torch.where(keep, ids, 0),
            "dropped": ~keep,
            "row": nn.functional.embedding(index, self.table),
        }


def inputs_of(rows: int) -> Arrays:
    """Inputs of Mixed."""
    return {
        "x": RANDOM.standard_normal((rows, 4), np.float32),
        "ids": RANDOM.integers(-(1 << 40), 1 << 40, (rows, 3)),
        "keep": RANDOM.integers(0, 2, (rows, 3)) == 1,
        "index": RANDOM.integers(0, 5, rows),
    }


def mixed_in_numpy(inputs: Arrays) -> Arrays:
    """What Mixed computes, in numpy."""
    weight, table = (each.numpy(force=True) for each in Mixed().parameters())
    return {
        "y": np.maximum(inputs["x"] @ weight, 0),
        "kept": np.where(inputs["keep"], inputs["ids"], 0),
        "dropped": ~inputs["keep"],
        "row": table[inputs["index"]],
    }


def converted(form: str, module: nn.Module, inputs: Arrays, compute: str = "float32") -> bytes:
    """The module as a file of this format."""
    rows = record(module, {name: torch.from_numpy(array) for name, array in inputs.items()})
    convert: Callable[..., bytes] = plugins.load("converter", form)
    return convert(module, rows, signature_of(module, rows), compute)


@functools.cache
def mixed(form: str) -> bytes:
    """Mixed as a file of this format."""
    return converted(form, Mixed(), inputs_of(4))


def rewritten(archive: bytes, **records: bytes | None) -> bytes:
    """The archive with other records, or without some."""
    reader, file = PyTorchFileReader(io.BytesIO(archive)), io.BytesIO()
    content = {name: reader.get_record(name) for name in reader.get_all_records() if not name.startswith(".data/")}
    writer = PyTorchFileWriter(file)
    writer.set_min_version(6 if "archive_format" in content else 0)
    for name, record_ in (content | records).items():
        if record_ is not None and name not in ("byteorder", "version"):
            writer.write_record(name, record_, len(record_))
    writer.write_end_of_file()
    return file.getvalue()


def publish(url: str) -> Artifact:
    """Publish Mixed in TorchScript."""
    inputs = inputs_of(2)
    outputs = mixed_in_numpy(inputs)

    def specs(arrays: artifacts.Arrays) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=n, dtype=a.dtype.name, shape=(-1, *a.shape[1:])) for n, a in arrays.items())

    graph = artifacts.Graph(
        mixed("torchscript"),
        Signature(inputs=specs(inputs), outputs=specs(outputs)),
        mixed_in_numpy,
        inputs,
    )
    files = {**artifacts.golden_files(inputs, outputs), "model.ts": graph.model}
    return artifacts.publish(url, graph, files=files, backend="torchscript", model_file="model.ts")
