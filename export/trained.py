"""What is known of the trained module before anything is made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from shipline.backends.base import Arrays
from shipline.errors import ConfigError, GateError, nearest
from shipline.export.cost import Cost, cost_of
from shipline.export.labels import noting_labels
from shipline.export.lengths import Shorter, freed, shorter, usual
from shipline.export.outputs import outputs_of
from shipline.export.recipe import Recipe
from shipline.export.rows import Rows, recording
from shipline.export.signature import signature_of
from shipline.export.source import Source
from shipline.signature import Signature

FEW_CALIBRATION_ROWS = 16
REPEATED_ROWS = 8
#: In parts of an output's largest value: sums over a batch of another size are taken in another order.
REPEATED_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Trained:
    """The module with its weights, real rows with its answers, and the metric that counts.

    `shorter` are real rows as servers make them, where rows differ in length: `rows` are all as long as the longest.
    """

    module: nn.Module
    rows: Rows
    signature: Signature
    metric: str
    mode: str
    metrics: dict[str, float]
    shorter: tuple[Shorter, ...] = ()

    @property
    def usual(self) -> Arrays:
        """Rows of the length that is usual, by which time is measured."""
        return usual(self.shorter).inputs if self.shorter else self.rows.inputs

    @property
    def weights_bytes(self) -> int:
        """How large its parameters and buffers are."""
        return sum(tensor.nbytes for tensor in self.module.state_dict().values() if isinstance(tensor, torch.Tensor))

    @cached_property
    def cost(self) -> Cost:
        """Its parameters, and the operations that a row takes."""
        return cost_of(self.module, self.rows.inputs)

    @property
    def score(self) -> float:
        """The trained module's own metric."""
        return self.metrics[self.metric]


def look_at(source: Source, recipe: Recipe) -> Trained:
    """Build the module, and record real rows as they go through it.

    Raises:
        SignatureError: forward, signature and rows do not agree.
        GateError: a weight or an answer is NaN or infinite.
    """
    module = source.build()
    rows, metrics = _recorded(module, source, recipe)
    signature = freed(signature_of(module, rows), source)
    _check_finite(rows, signature)
    _check_repeats(module, rows, signature)
    name, mode = _metric_of(recipe, source, metrics)
    return Trained(module, rows, signature, name, mode, metrics, shorter(module, source, signature, rows))


def look_again(trained: Trained, module: nn.Module, source: Source, recipe: Recipe) -> Trained:
    """Return what is known of a module that was made of the trained one.

    Raises:
        GateError: it has another signature, or an answer is NaN or infinite.
    """
    try:
        rows, metrics = _recorded(module, source, recipe)
    except GateError:
        raise
    except Exception as error:  # whatever takes the place of a user's forward raises
        raise GateError(
            f"The {type(module).__name__} that was made cannot take the rows that the trained one takes: "
            f"{type(error).__name__}: {str(error).strip()[:800]}. Nothing was published. Leave out the pass that made "
            "it, or give calibration rows as long as those."
        ) from error
    if (signature := freed(signature_of(module, rows), source)) != trained.signature:
        raise GateError(
            f"The module that was made has another signature, {signature}, than the trained one, {trained.signature}. "
            "Nothing was published."
        )
    _check_finite(rows, signature)
    short = shorter(module, source, signature, rows)
    return replace(trained, module=module, rows=rows, metrics=metrics, shorter=short)


def _recorded(module: nn.Module, source: Source, recipe: Recipe) -> tuple[Rows, dict[str, float]]:
    with recording(module, recipe.proof_rows) as rows, noting_labels(module, rows):
        metrics = source.evaluate(module)
    for labels in getattr(source.evaluate, "labels", ()):
        rows.add_labels(labels)
    return rows, metrics


def calibration_rows(trained: Trained, source: Source, recipe: Recipe) -> Rows:
    """Return training rows: the same ones each time, though a loader that shuffles draws from torch's generator."""
    with recording(trained.module, recipe.calibration_rows) as rows, torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        source.evaluate(trained.module, split="train", rows=recipe.calibration_rows)
    few = min(FEW_CALIBRATION_ROWS, recipe.calibration_rows)
    if len(rows) < few:
        raise ConfigError(
            f"Recipe has calibration_rows={recipe.calibration_rows}, and there are {len(rows)}: scales that are "
            f"measured on fewer than {few} rows clip what is larger in others. Give more training rows, or "
            "calibration=..., or set calibration_rows to that number."
        )
    return rows


def _check_finite(rows: Rows, signature: Signature) -> None:
    """NaN and infinity can be compared with nothing, here or in the server."""
    for number, (bad, first) in rows.not_finite.items():
        raise GateError(
            f"The trained module's own output {signature.outputs[number].name!r} is NaN or infinite in {bad} of "
            f"{rows.seen} validation rows, first in row {first}. Nothing was published."
        )


def _check_repeats(module: nn.Module, rows: Rows, signature: Signature) -> None:
    """What draws random numbers, or remembers, is no function of its inputs, which is all that a graph can be."""
    first, again = (_answers(module, rows) for _ in range(2))
    for spec, output, found in zip(signature.outputs, first, again, strict=True):
        difference = np.abs(found - output).max(initial=0)
        if difference > REPEATED_TOLERANCE * max(float(np.abs(output).max(initial=0)), 1e-6):
            raise GateError(
                f"{type(module).__name__} answers the same rows otherwise when it is asked again: {spec.name!r} "
                f"differs by {difference:.3g}. Its forward draws random numbers or keeps something between calls, "
                "which a graph cannot. Nothing was published."
            )


def _answers(module: nn.Module, rows: Rows) -> list[np.ndarray]:
    inputs = {name: torch.from_numpy(array[:REPEATED_ROWS].copy()) for name, array in rows.inputs.items()}
    with torch.no_grad():
        leaves = outputs_of(module.eval()(**inputs))
    return [leaf.numpy(force=True).astype(np.float64) for leaf in leaves]


def _metric_of(recipe: Recipe, source: Source, metrics: dict[str, float]) -> tuple[str, str]:
    """Return the metric that counts, and which way is better."""
    name = recipe.metric or source.monitor
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
    known = source.mode if name == source.monitor else None
    mode = recipe.mode or known
    if mode is None:
        raise ConfigError(f"Is a high {name!r} good, or a low one? Set the recipe's mode to 'max' or 'min'.")
    if not math.isfinite(metrics[name]):
        raise GateError(
            f"The trained module's own {name!r} is {metrics[name]} over the validation rows, and no graph is better or "
            "worse than that. Nothing was published. Look at the metric, and at the rows that it is computed on."
        )
    return name, mode
