"""One step of the processing: a name, its parameters, and a function of one row."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict


class Step(BaseModel):
    """A step is data: its name and parameters are what is stored; calling it transforms one row."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    NAME: ClassVar[str]
    #: The JSON schema of what it takes where it is the first step, for the server's documentation.
    TAKES: ClassVar[dict[str, Any]] = {}

    @property
    def longest(self) -> int | None:
        """How long its longest row is, where rows differ in their first dimension; None where all have one shape."""
        return None

    def whole(self) -> Step:
        """Return the step with all rows as long as the longest."""
        return self

    def trim(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cut rows of `whole()`, with a batch dimension, down to the length that the longest of them needs."""
        return rows

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Transform one row; ProcessingError where the row is at fault."""
