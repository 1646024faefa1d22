"""Golden rows: real validation rows with the trained module's answers, for servers to check themselves with."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import nn

from shipline.artifact import GOLDEN, GOLDEN_TENSORS, Verdict
from shipline.backends.base import Arrays
from shipline.errors import SignatureError
from shipline.export import gates
from shipline.export.outputs import outputs_of
from shipline.export.rows import Rows
from shipline.processing import Processing
from shipline.signature import Signature

RAW_ROWS = 256


@dataclass(frozen=True)
class Golden:
    """Inputs and outputs with a batch dimension; raw inputs and answers, one each a row, where there is processing."""

    inputs: Arrays
    outputs: Arrays
    raw: list[Any]
    answers: list[Any]

    def files(self) -> dict[str, bytes]:
        """Return the files that an artifact keeps them in."""
        tensors = {f"input.{name}": np.ascontiguousarray(array) for name, array in self.inputs.items()}
        tensors |= {f"output.{name}": np.ascontiguousarray(array) for name, array in self.outputs.items()}
        rows = [{"raw": _stored(raw), "answer": answer} for raw, answer in zip(self.raw, self.answers, strict=True)]
        content = {"schema_version": 1, "count": len(next(iter(self.inputs.values()))), "rows": rows}
        return {GOLDEN: json.dumps(content, indent=1).encode(), GOLDEN_TENSORS: safetensors.numpy.save(tensors)}


def from_raw(
    module: nn.Module, processing: Processing, raw_rows: Iterable[Any], rows: Rows, signature: Signature, count: int
) -> tuple[Golden, Verdict]:
    """Return golden rows made from raw inputs, and the verdict on whether processing and validation agree."""
    raw = list(islice(raw_rows, RAW_ROWS))
    if not raw:
        raise SignatureError(
            "The DataModule has processing but raw_rows() gives none: return raw inputs of validation rows."
        )
    prepared = [processing.whole.inputs(item, signature) for item in raw]
    verdict = gates.preprocessing([rows.has_seen(row) for row in prepared])
    chosen = spread(len(raw), count)
    inputs = {spec.name: np.concatenate([prepared[i][spec.name] for i in chosen]) for spec in signature.inputs}
    outputs = _trained_outputs(module, inputs, signature)
    answers = [processing.answer(row) for row in outputs[signature.outputs[0].name]]
    return Golden(inputs, outputs, [raw[i] for i in chosen], answers), verdict


def from_rows(rows: Rows, signature: Signature, count: int, worst: int) -> Golden:
    """Return golden rows without raw inputs: some of the recorded ones, that with the largest difference included."""
    chosen = sorted({*spread(len(rows), count), worst})
    inputs = {spec.name: rows.inputs[spec.name][chosen] for spec in signature.inputs}
    outputs = {spec.name: array[chosen] for spec, array in zip(signature.outputs, rows.outputs, strict=True)}
    return Golden(inputs, outputs, [], [])


def raw_of(
    wanted: Iterable[int], raw: Sequence[Any], processing: Processing, rows: Rows, signature: Signature
) -> dict[int, tuple[int, Any]]:
    """Return the raw rows, with their numbers, that make the wanted rows; those whose processed form is the row itself.

    Nobody promises that raw rows come in the order of validation rows, so that place is only where to look first.
    """
    prepared: dict[int, Arrays] = {}
    found, inputs = {}, rows.inputs
    for row in wanted:
        own = {name: array[row : row + 1] for name, array in inputs.items()}
        for i in sorted(range(len(raw)), key=lambda i: i != row):
            if i not in prepared:
                prepared[i] = processing.whole.inputs(raw[i], signature)
            if _same(prepared[i], own):
                found[row] = (i, raw[i])
                break
    return found


def spread(rows: int, count: int) -> list[int]:
    """Return `count` evenly spaced numbers of rows, or all."""
    return sorted({int(i) for i in np.linspace(0, rows - 1, min(rows, count))})


def _trained_outputs(module: Callable[..., Any], inputs: Arrays, signature: Signature) -> Arrays:
    with torch.inference_mode():
        output = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    leaves = outputs_of(output)
    return {spec.name: leaf.numpy() for spec, leaf in zip(signature.outputs, leaves, strict=True)}


def _same(one: Arrays, other: Arrays) -> bool:
    """Whether two rows are the same to the last bit."""
    return one.keys() == other.keys() and all(_bits(array) == _bits(other[name]) for name, array in one.items())


def _bits(array: np.ndarray) -> tuple[np.dtype[Any], tuple[int, ...], bytes]:
    return array.dtype, array.shape, array.tobytes()


def _stored(raw: Any) -> dict[str, Any]:
    return {"base64": base64.b64encode(raw).decode()} if isinstance(raw, bytes) else {"json": raw}
