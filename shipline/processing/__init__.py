"""Processing as data: the steps from a raw input to tensors, and from tensors to an answer.

The very same object transforms rows in the DataModule, in export and in the server; that is what ends the skew between
training and serving. What cannot be said in steps belongs into the module itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import ValidationError

from shipline import plugins
from shipline.errors import ConfigError, IntegrityError, ProcessingError, SchemaError
from shipline.processing.answers import Labels, Sigmoid, Softmax, TopK
from shipline.processing.image import DecodeImage, Grayscale, Layout, Normalize, Resize, Rgb
from shipline.processing.step import Step
from shipline.processing.tabular import Columns
from shipline.processing.text import Tokenize
from shipline.signature import Signature

__all__ = [
    "Columns",
    "DecodeImage",
    "Grayscale",
    "Labels",
    "Layout",
    "Normalize",
    "Processing",
    "Resize",
    "Rgb",
    "Sigmoid",
    "Softmax",
    "Step",
    "Tokenize",
    "TopK",
]

SCHEMA = 1


class Processing:
    """The steps before and after a model, about its inputs and its first output.

    Args:
        before: raw input -> one row of the model's input, without the batch dimension; or, for a model of several, one
            row of each by name.
        after: one row of the model's first output -> the answer.
    """

    def __init__(self, before: Sequence[Step], after: Sequence[Step] = ()) -> None:
        self.before = tuple(before)
        self.after = tuple(after)

    def prepare(self, raw: Any) -> Any:
        """Return one row of the model's input, or of each by name; ProcessingError where the raw input is at fault."""
        for step in self.before:
            raw = step(raw)
        return {name: _array(row) for name, row in raw.items()} if isinstance(raw, dict) else _array(raw)

    def named(self, raw: Any, first: str) -> dict[str, np.ndarray]:
        """Return one row of each input by name; `first` is the name of a model's only one."""
        prepared = self.prepare(raw)
        return prepared if isinstance(prepared, dict) else {first: prepared}

    def inputs(self, raw: Any, signature: Signature) -> dict[str, np.ndarray]:
        """Return what the model takes for one raw input, with a batch dimension.

        Raises:
            ProcessingError: the raw input is at fault.
            SignatureError: the model takes something else.
        """
        arrays = {name: row[None] for name, row in self.named(raw, signature.inputs[0].name).items()}
        signature.check_inputs(arrays)
        return arrays

    def answer(self, output: np.ndarray) -> Any:
        """Return what people see for one row of the model's output."""
        value: Any = output
        for step in self.after:
            value = step(value)
        return value.tolist() if isinstance(value, np.ndarray) else value

    @property
    def longest(self) -> int | None:
        """How long the longest row is, where rows differ in their first dimension; None where all have one shape."""
        return None if self._lengthy is None else self._lengthy.longest

    @property
    def _lengthy(self) -> Step | None:
        """The step that says how long rows are."""
        return next((step for step in reversed(self.before) if step.longest is not None), None)

    @cached_property
    def whole(self) -> Processing:
        """The same steps with all rows as long as the longest: what a module is trained and proved on."""
        return self if self.longest is None else Processing([step.whole() for step in self.before], self.after)

    def trim(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cut rows of `whole`, with a batch dimension, down to the length that the longest of them needs."""
        return rows if self._lengthy is None else self._lengthy.trim(rows)

    @property
    def takes_bytes(self) -> bool:
        """Whether the raw input is the bytes of a file, rather than JSON."""
        return bool(self.before) and isinstance(self.before[0], DecodeImage)

    @property
    def takes(self) -> dict[str, Any]:
        """The JSON schema of a raw input."""
        return dict(self.before[0].TAKES) if self.before else {}

    def to_json(self) -> bytes:
        """Return the steps as `processing.json`."""
        content = {"schema_version": SCHEMA, "before": _stored(self.before), "after": _stored(self.after)}
        return json.dumps(content, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Processing:
        """Return the processing in `processing.json`.

        Raises:
            IntegrityError: it names a step that this Shipline does not have, a parameter is wrong, or it is no list of
                steps at all.
            SchemaError: it was written by a newer Shipline.
        """
        try:
            content = json.loads(data)
            if (version := content["schema_version"]) > SCHEMA:
                raise SchemaError(f"The processing has schema version {version}; this Shipline reads up to {SCHEMA}.")
            return cls(_loaded(content["before"]), _loaded(content["after"]))
        except ConfigError as error:
            raise IntegrityError(f"The stored processing cannot be used: {error}") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise IntegrityError("The stored processing is damaged: a JSON object of steps is expected.") from error


def step(name: str, /, **parameters: Any) -> Step:
    """Return the step `name` with these parameters; ConfigError says which parameter is wrong."""
    cls: type[Step] = plugins.load("step", name)
    try:
        return cls(**parameters)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or name
        raise ConfigError(f"Step {name!r}: {where}: {first['msg']}.") from error


def _array(value: Any) -> np.ndarray:
    try:
        return np.require(value, requirements="W")  # Pillow's pictures are read-only, of which torch warns
    except ValueError as error:
        raise ProcessingError(f"The input is no array of numbers: {error}.") from error


def _stored(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    return [{"step": item.NAME, **item.model_dump(mode="json")} for item in steps]


def _loaded(stored: list[dict[str, Any]]) -> list[Step]:
    return [step(item["step"], **{key: value for key, value in item.items() if key != "step"}) for item in stored]
