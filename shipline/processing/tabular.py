"""Steps from a row of a table, given as a JSON object, to a tensor."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from shipline.errors import ProcessingError, nearest
from shipline.processing.step import Step

_TOO_LARGE = (2 - 2**-24) * 2.0**127  # from here on, rounding to float32 gives infinity


class Columns(Step):
    """{"column": value} -> float32 [width]: the numeric columns in order, then each categorical one as 0s and a 1."""

    NAME: ClassVar[str] = "columns"
    TAKES: ClassVar[dict[str, Any]] = {"type": "object"}

    numeric: tuple[str, ...] = ()
    categorical: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _some(self) -> Columns:
        names = [*self.numeric, *self.categorical]
        if not names or len(set(names)) < len(names):
            raise ValueError("columns needs at least one column, and each name once")
        for name, categories in self.categorical.items():
            if not categories or len(set(categories)) < len(categories):
                raise ValueError(f"column {name!r} needs at least one category, and each once")
        return self

    def __call__(self, value: Any) -> np.ndarray:
        if not isinstance(value, dict):
            raise ProcessingError(f"Expected a JSON object of columns; got {type(value).__name__}.")
        known = [*self.numeric, *self.categorical]
        for name in value:
            if name not in known:
                raise ProcessingError(f"Unknown column {name!r:.60}.{nearest(str(name)[:60], known)}")
        numbers = [_number(value, name) for name in self.numeric]
        for name, categories in self.categorical.items():
            found = _category(value, name, categories)
            numbers.extend(float(found == category) for category in categories)
        return np.asarray(numbers, np.float32)


def _present(row: dict[str, Any], name: str) -> Any:
    if name not in row:
        raise ProcessingError(f"Missing column {name!r}.")
    return row[name]


def _number(row: dict[str, Any], name: str) -> float:
    value = _present(row, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProcessingError(f"Column {name!r} must be a number; got {value!r:.60}.")
    if not -_TOO_LARGE < value < _TOO_LARGE:  # refuses NaN, too; exact for whole numbers of any length
        raise ProcessingError(f"Column {name!r} must be a finite float32 number, less than {_TOO_LARGE:.4g} in size.")
    return float(value)


def _category(row: dict[str, Any], name: str, categories: tuple[str, ...]) -> str:
    value = _present(row, name)
    if not isinstance(value, str) or value not in categories:
        raise ProcessingError(f"Column {name!r} must be one of {', '.join(categories)}; got {value!r:.60}.")
    return value
