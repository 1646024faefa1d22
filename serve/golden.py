"""A model's own check before it takes traffic: its golden rows, through the path that requests take."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from shipline.artifact import GOLDEN, GOLDEN_TENSORS, Artifact
from shipline.backends.base import Arrays
from shipline.errors import IntegrityError, SchemaError, ServingError
from shipline.serve.batcher import OWN
from shipline.serve.errors import RequestError

if TYPE_CHECKING:
    from shipline.serve.model import ServedModel


SCHEMA = 1


@dataclass(frozen=True)
class Example:
    """One golden row, for the docs: inputs and outputs with a batch dimension; raw input and answer, if any."""

    inputs: Arrays
    outputs: Arrays
    raw: Any
    answer: Any


class GoldenRows:
    """Real rows with the trained module's answers, as an artifact keeps them."""

    def __init__(self, artifact: Artifact) -> None:
        content = json.loads(artifact.read(GOLDEN))
        if content["schema_version"] > SCHEMA:
            raise SchemaError(
                f"{artifact} has golden rows of schema version {content['schema_version']}; upgrade Shipline."
            )
        tensors = dict(sorted(safetensors.numpy.load(artifact.read(GOLDEN_TENSORS)).items()))  # else in any order
        self.raw = [_restored(row["raw"]) for row in content["rows"]]
        self.answers: list[Any] = [row["answer"] for row in content["rows"]]
        self.inputs = {name.removeprefix("input."): a for name, a in tensors.items() if name.startswith("input.")}
        self.outputs = {name.removeprefix("output."): a for name, a in tensors.items() if name.startswith("output.")}
        self.count: int = content["count"]
        self._check(artifact)

    def _check(self, artifact: Artifact) -> None:
        """Rows without answers, or no rows at all, would prove nothing and pass."""
        artifact.manifest.signature.check_inputs(self.inputs)
        artifact.manifest.signature.check_outputs(self.outputs)
        counts = {len(array) for array in (*self.inputs.values(), *self.outputs.values())}
        if counts != {self.count} or self.count < 1 or len(self.raw) not in (0, self.count):
            raise IntegrityError(f"{artifact} has no golden rows, or some without answers. Export it again.")

    def row(self, number: int) -> tuple[Arrays, Arrays]:
        """Return inputs and outputs of one row, with a batch dimension."""
        part = slice(number, number + 1)
        return {n: a[part] for n, a in self.inputs.items()}, {n: a[part] for n, a in self.outputs.items()}

    def example(self) -> Example:
        """Return the first row."""
        inputs, outputs = self.row(0)
        return Example(inputs, outputs, self.raw[0] if self.raw else None, self.answers[0] if self.raw else None)


async def replay(model: ServedModel, rows: GoldenRows) -> None:
    """Answer every golden row, raw input and tensors.

    Raises:
        ServingError: an answer differs from the trained module's by more than the artifact allows.
    """
    for number in range(rows.count):
        inputs, expected = rows.row(number)
        asked = [inputs]
        if rows.raw:
            _check_prepared(model, rows.raw[number], inputs, number)
            if model.manifest.serving.longest is not None:  # golden rows are as long as the longest
                asked.append(_prepared(model, rows.raw[number], number))
        for each in asked:
            await _check_answer(model, each, expected, number)
        if rows.raw and not _same(model.answer(expected), rows.answers[number]):
            raise _wrong(model, number, "the trained module's outputs become another answer than at export")


async def _check_answer(model: ServedModel, inputs: Arrays, expected: Arrays, number: int) -> None:
    try:
        outputs = await model.infer(inputs, 1, OWN)
    except Exception as error:
        raise _wrong(model, number, f"it raises {type(error).__name__}: {error}") from error
    for name, want in expected.items():
        difference = float(np.abs(outputs[name].astype(np.float64) - want).max(initial=0.0))
        if not difference <= model.manifest.tolerance[name]:
            allowed = model.manifest.tolerance[name]
            raise _wrong(model, number, f"output {name!r} differs by {difference:.3g}; {allowed:.3g} is allowed")


def _check_prepared(model: ServedModel, raw: Any, inputs: Arrays, number: int) -> None:
    prepared = _prepared(model, raw, number, whole=True)
    for name, want in inputs.items():
        if prepared[name].shape != want.shape or not np.allclose(prepared[name], want, rtol=0, atol=1e-6):
            raise _wrong(model, number, f"its raw input becomes another {name!r} than at export")


def _prepared(model: ServedModel, raw: Any, number: int, *, whole: bool = False) -> Arrays:
    try:
        return model.prepare(raw, whole=whole)
    except RequestError as error:
        raise _wrong(model, number, f"its raw input is refused: {error.message}") from error


def _same(found: Any, want: Any) -> bool:
    """Whether two answers are equal, but for the last digits of their numbers."""
    if isinstance(found, dict) and isinstance(want, dict):
        return found.keys() == want.keys() and all(_same(found[key], want[key]) for key in want)
    if isinstance(found, list) and isinstance(want, list):
        return len(found) == len(want) and all(map(_same, found, want))
    if isinstance(found, float) and isinstance(want, float):
        return math.isclose(found, want, rel_tol=1e-6, abs_tol=1e-9)
    return bool(found == want)


def _wrong(model: ServedModel, number: int, what: str) -> ServingError:
    return ServingError(
        f"Model {model.name!r} version {model.version} is wrong on this machine: golden row {number}: {what}. It "
        "takes no traffic. Export it again on a machine like this one, or install the package versions of its lineage."
    )


def _restored(raw: dict[str, Any]) -> Any:
    return base64.b64decode(raw["base64"]) if "base64" in raw else raw["json"]
