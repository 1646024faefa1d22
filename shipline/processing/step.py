"""One step of the processing: a name, its parameters, and a function of one row."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Step(BaseModel):
    """A step is data: its name and parameters are what is stored; calling it transforms one row."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    NAME: ClassVar[str]
    #: The JSON schema of what it takes where it is the first step, for the server's documentation.
    TAKES: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Transform one row; ProcessingError where the row is at fault."""
