"""What is known of the trained module before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from shipline.checkpoint import WEIGHTS, Checkpoint
from shipline.errors import ConfigError, GateError, nearest
from shipline.export.recipe import Recipe
from shipline.export.rows import Rows, recording
from shipline.export.signature import signature_of
from shipline.export.source import rebuild
from shipline.processing import Processing
from shipline.signature import Signature


class Evaluate(Protocol):
    """Runs the module's own validation step over real data and returns what it logs."""

    def __call__(
        self, module: nn.Module, *, split: Literal["val", "train"] = "val", rows: int | None = None
    ) -> dict[str, float]:
        """Evaluate on the validation data, or on (the first `rows` of) the training data."""
        ...


@dataclass(frozen=True)
class Source:
    """What is exported: a checkpoint, the class that it is of, and how to evaluate it on real data."""

    checkpoint: Checkpoint
    module_class: Callable[..., nn.Module]
    evaluate: Evaluate
    processing: Processing | None = None
    raw_rows: Callable[[], Iterable[Any]] = tuple


@dataclass(frozen=True)
class Trained:
    """The module with its weights, real rows with its answers, and the metric that counts."""

    module: nn.Module
    rows: Rows
    signature: Signature
    metric: str
    mode: str
    metrics: dict[str, float]
    weights_bytes: int

    @property
    def score(self) -> float:
        """The trained module's own metric."""
        return self.metrics[self.metric]


def look_at(source: Source, recipe: Recipe) -> Trained:
    """Rebuild the module, and record real rows as they go through it.

    Raises:
        SignatureError: forward, signature and rows do not agree.
        GateError: a weight or an answer is NaN or infinite.
    """
    module = rebuild(source.module_class, source.checkpoint)
    with recording(module, recipe.proof_rows) as rows:
        metrics = source.evaluate(module)
    signature = signature_of(module, rows)
    _check_finite(rows, signature)
    name, mode = _metric_of(recipe, source.checkpoint, metrics)
    return Trained(module, rows, signature, name, mode, metrics, source.checkpoint.manifest.files[WEIGHTS].size)


def calibration_rows(trained: Trained, source: Source, recipe: Recipe) -> Rows:
    """Return training rows: the same ones each time, though a loader that shuffles draws from torch's generator."""
    with recording(trained.module, recipe.calibration_rows) as rows, torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        source.evaluate(trained.module, split="train", rows=recipe.calibration_rows)
    return rows


def _check_finite(rows: Rows, signature: Signature) -> None:
    """NaN and infinity can be compared with nothing, here or in the server."""
    for spec, output in zip(signature.outputs, rows.outputs, strict=True):
        bad = ~np.isfinite(output).reshape(len(output), -1).all(axis=1)
        if bad.any():
            raise GateError(
                f"The trained module's own output {spec.name!r} is NaN or infinite in {bad.sum()} of {len(bad)} "
                f"validation rows, first in row {bad.argmax()}. Nothing was published."
            )


def _metric_of(recipe: Recipe, checkpoint: Checkpoint, metrics: dict[str, float]) -> tuple[str, str]:
    """Return the metric that counts, and which way is better."""
    name = recipe.metric or checkpoint.manifest.monitor
    logged = ", ".join(metrics) or "nothing"
    if name is None:
        raise ConfigError(
            "Which metric counts? The run monitored none. Set the recipe's metric and mode; "
            f"validation_step logs: {logged}."
        )
    if name not in metrics:
        raise ConfigError(
            f"The metric {name!r} is not logged by validation_step.{nearest(name, metrics)} It logs: {logged}."
        )
    known = checkpoint.manifest.mode if name == checkpoint.manifest.monitor else None
    mode = recipe.mode or known
    if mode is None:
        raise ConfigError(f"Is a high {name!r} good, or a low one? Set the recipe's mode to 'max' or 'min'.")
    return name, mode
