"""Steps from a model's output for one row to an answer that people read."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from shipline.errors import ProcessingError
from shipline.processing.step import Step


class Softmax(Step):
    """Logits [..., classes] -> probabilities, in float64."""

    NAME: ClassVar[str] = "softmax"

    def __call__(self, value: np.ndarray) -> np.ndarray:
        logits = value.astype(np.float64)
        with np.errstate(invalid="ignore"):  # an infinite logit gives NaN, as NaN does
            powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


class Sigmoid(Step):
    """Logits -> the probability of each by itself, in float64: where several classes may be right at once."""

    NAME: ClassVar[str] = "sigmoid"

    def __call__(self, value: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # the power of a very small logit is infinite, its probability 0
            return np.asarray(1 / (1 + np.exp(-value.astype(np.float64))))


class Labels(Step):
    """Scores [classes] -> {"label", "score", "scores"}: the best class, its score, and all scores, best first."""

    NAME: ClassVar[str] = "labels"

    names: tuple[str, ...] = Field(min_length=1)

    @field_validator("names")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):  # the answer has one score for each name
            raise ValueError("each name must occur once")
        return names

    def __call__(self, value: np.ndarray) -> dict[str, Any]:
        if value.shape != (len(self.names),):
            raise ProcessingError(f"labels has {len(self.names)} names for scores of shape {list(value.shape)}.")
        return ranked(self.names, value)


class TopK(Step):
    """Keep the `k` best scores of an answer; plain scores are labelled by their index first."""

    NAME: ClassVar[str] = "top_k"

    k: int = Field(ge=1)

    def __call__(self, value: np.ndarray | dict[str, Any]) -> dict[str, Any]:
        answer = value if isinstance(value, dict) else ranked(tuple(map(str, range(value.size))), value.ravel())
        return answer | {"scores": dict(list(answer["scores"].items())[: self.k])}


def ranked(names: tuple[str, ...], scores: np.ndarray) -> dict[str, Any]:
    """Return the answer for these scores; equal scores keep their order."""
    order = np.argsort(-scores, kind="stable")
    listed = {names[i]: float(scores[i]) for i in order}
    label = names[order[0]]
    return {"label": label, "score": listed[label], "scores": listed}
