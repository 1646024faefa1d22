"""What a model takes and gives: named tensors with a dtype and a shape."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from shipline.errors import SignatureError

DYNAMIC = -1
BYTES = "object"  # numpy's name for arrays of anything; here of bytes, each of any length

# numpy name -> name in the Open Inference Protocol v2; numbers, which is what a module takes
OIP_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
DATATYPES = OIP_DATATYPES | {BYTES: "BYTES"}  # what graphs from elsewhere may take and give besides


class TensorSpec(BaseModel):
    """One named tensor: numpy dtype name, and a shape whose first dimension is the batch; -1 is any size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int, ...]

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str) -> str:
        if dtype not in DATATYPES:
            raise ValueError(f"dtype {dtype!r} is none of {', '.join(DATATYPES)}")
        return dtype

    @field_validator("shape")
    @classmethod
    def _dynamic_batch(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not shape or shape[0] != DYNAMIC:
            raise ValueError(f"shape {list(shape)} must begin with -1, the batch")
        if any(size < 1 and size != DYNAMIC for size in shape):
            raise ValueError(f"shape {list(shape)} has a dimension that is neither positive nor -1")
        return shape

    @property
    def datatype(self) -> str:
        """The dtype under its Open Inference Protocol name."""
        return DATATYPES[self.dtype]

    def matches(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape (with its batch dimension) fits."""
        return len(shape) == len(self.shape) and all(
            want in (DYNAMIC, got) for want, got in zip(self.shape, shape, strict=True)
        )

    def check(self, array: np.ndarray) -> None:
        """Raise SignatureError, naming this tensor, unless dtype and shape fit."""
        if array.dtype.name != self.dtype:
            raise SignatureError(f"{self.name!r} must be {self.dtype}; got {array.dtype.name}.")
        if not self.matches(array.shape):
            raise SignatureError(f"{self.name!r} must have shape {list(self.shape)}; got {list(array.shape)}.")


class Signature(BaseModel):
    """The tensors that go in and come out; the first dimension of each is the batch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @field_validator("inputs", "outputs")
    @classmethod
    def _distinct(cls, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        names = [spec.name for spec in specs]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"needs at least one tensor, and distinct names; got {names}")
        return specs

    def check_inputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise SignatureError unless `arrays` are these inputs."""
        _check(self.inputs, arrays, "input")

    def check_outputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Raise SignatureError unless `arrays` are these outputs."""
        _check(self.outputs, arrays, "output")

    def __str__(self) -> str:
        return f"{_listed(self.inputs)} -> {_listed(self.outputs)}"


def zeros(specs: tuple[TensorSpec, ...], rows: int, size: int) -> dict[str, np.ndarray]:
    """Return rows of zeros, and of empty texts, whose free dimensions have this size."""
    found: dict[str, np.ndarray] = {}
    for spec in specs:
        shape = (rows, *(size if one == DYNAMIC else one for one in spec.shape[1:]))
        found[spec.name] = np.full(shape, b"", object) if spec.dtype == BYTES else np.zeros(shape, spec.dtype)
    return found


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.name}: {spec.dtype}[{', '.join(map(str, spec.shape))}]" for spec in specs)


def _check(specs: tuple[TensorSpec, ...], arrays: Mapping[str, np.ndarray], what: str) -> None:
    known = [spec.name for spec in specs]
    for name in arrays:
        if name not in known:
            raise SignatureError(f"Unknown {what} {name!r}; known: {', '.join(known)}.")
    for spec in specs:
        if spec.name not in arrays:
            raise SignatureError(f"Missing {what} {spec.name!r} ({spec.dtype}, shape {list(spec.shape)}).")
        spec.check(arrays[spec.name])
    rows = {name: arrays[name].shape[0] for name in known}
    if len(set(rows.values())) > 1:
        raise SignatureError(f"All {what}s must have the same number of rows; got {rows}.")
