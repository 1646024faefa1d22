"""Evaluating any module over rows, with no training code of ours: by given functions, or by its own answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from shipline.errors import ConfigError, ShiplineError, SignatureError
from shipline.export.examples import Examples
from shipline.export.fidelity import FIDELITY, Fidelity
from shipline.export.kept import Kept
from shipline.export.labels import labels_in
from shipline.export.outputs import taken_apart
from shipline.export.source import Source, digest_of
from shipline.processing import Processing

#: (outputs, targets) over all rows -> how good they are.
Metric = Callable[[Any, Any], Any]

FEWEST_ROWS = 2


def on_rows(
    source: Source,
    rows: Any,
    *,
    metric: Metric | Mapping[str, Metric] | None = None,
    mode: Literal["min", "max"] | None = None,
    calibration: Any = None,
    processing: Processing | None = None,
) -> Source:
    """Return the source, proved on these rows.

    Args:
        source: what is exported.
        rows: see `Examples`; with processing, raw inputs.
        metric: a function of outputs, as forward gives them, and targets, all rows of each; or several by name, of
            which the first counts. Without targets the module's own answers are in their place. Default: `Fidelity`.
        mode: "min" or "max" of the first is best.
        calibration: rows to measure scales on; default: the same.
        processing: makes rows of raw inputs, and answers of outputs.

    Raises:
        ConfigError: the rows cannot be read, or are too few.
    """
    processing = processing or source.processing
    metrics = _named(metric)
    module = source.build()
    examples = Examples(rows, module.forward, labelled=bool(metrics), processing=processing)
    others = examples
    if calibration is not None:
        others = Examples(calibration, module.forward, labelled=bool(metrics), processing=processing)
    return replace(
        source,
        evaluate=Evaluation(module, {"val": examples, "train": others}, metrics),
        monitor=next(iter(metrics), FIDELITY),
        mode=mode if metrics else "max",
        recorded={},
        processing=processing,
        raw_rows=lambda: examples.raw,
    )


class Evaluation:
    """Runs a module over rows and says how good its answers are.

    Args:
        original: the module as it was trained, whose own answers count where there are no targets.
        examples: split -> rows.
        metrics: by name; where there are none, `Fidelity` counts.
    """

    def __init__(self, original: nn.Module, examples: dict[str, Examples], metrics: dict[str, Metric]) -> None:
        self._original, self._examples, self._metrics = original, examples, metrics
        self._own = Kept[Any]()
        #: The right classes of the rows that it has gone through last, a part for each batch; None: not known.
        self.labels: list[np.ndarray | None] = []

    def __call__(
        self, module: nn.Module, *, split: Literal["val", "train"] = "val", rows: int | None = None
    ) -> dict[str, float]:
        """Return the metrics over all rows of a split; with `rows`, run over so many, for others to see them go by."""
        fidelity, outputs, targets, seen = Fidelity(), [], [], 0
        self.labels = []
        with torch.no_grad():
            for inputs, target in self._examples[split].batches():
                found = _answer(module, inputs)
                count = len(next(iter(inputs.values())))
                seen += count
                self.labels.append(labels_in(target, count))
                if rows is not None:
                    if seen >= rows:
                        break
                elif not self._metrics:
                    fidelity.add(found, self._own_answer(inputs))
                else:
                    outputs.append(found)
                    targets.append(self._own_answer(inputs) if target is None else target)
        if rows is not None:
            return {}
        if seen < FEWEST_ROWS:
            raise ConfigError(f"rows has {seen} rows; a proof needs at least {FEWEST_ROWS}, and hundreds prove more.")
        if not self._metrics:
            return {FIDELITY: fidelity.value()}
        together = _together(outputs), _together(targets)
        return {name: _measured(name, metric, *together) for name, metric in self._metrics.items()}

    def _own_answer(self, inputs: dict[str, torch.Tensor]) -> Any:
        """The original's, with which those of all candidates are compared."""
        return self._own.answer(digest_of(inputs), lambda: _answer(self._original, inputs))


def _named(metric: Metric | Mapping[str, Metric] | None) -> dict[str, Metric]:
    if metric is None:
        return {}
    if callable(metric):
        name = getattr(metric, "__name__", type(metric).__name__)
        return {"metric" if name == "<lambda>" else name: metric}
    if not isinstance(metric, Mapping) or not metric or not all(map(callable, metric.values())):
        raise ConfigError(f"metric is {metric!r:.100}; give a function of outputs and targets, or several by name.")
    return dict(metric)


def _answer(module: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    try:
        return module(**{name: tensor.clone() for name, tensor in inputs.items()})  # forward may write into them
    except ShiplineError:
        raise
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(f"{name}: {tensor.dtype} {list(tensor.shape)}" for name, tensor in inputs.items())
        raise SignatureError(
            f"forward of {type(module).__name__} cannot take the rows ({shapes}): {type(error).__name__}: "
            f"{str(error).strip()[:500].rstrip('.')}.{_advice(module, inputs, error)}"
        ) from error


def _advice(module: nn.Module, inputs: dict[str, torch.Tensor], error: Exception) -> str:
    """What to do where numbers are of another dtype than the weights, as those of numpy and pandas mostly are."""
    dtypes = {weight.dtype for weight in module.parameters() if weight.is_floating_point()}
    others = [name for name, each in inputs.items() if each.dtype not in dtypes]
    others = [name for name in others if inputs[name].is_floating_point()] or others
    if "dtype" not in str(error) or len(dtypes) != 1 or not others:
        return ""
    return f" The weights are {dtypes.pop()}: give {', '.join(others)} in that."


def _together(parts: list[Any]) -> Any:
    """Put what batches gave together: tensors by row, in the structure that they came in; else a list."""
    outputs, (structure, *_) = zip(*map(taken_apart, parts), strict=True)
    if not all(isinstance(leaf, torch.Tensor) for found in outputs for leaf in found):
        return [item for part in parts for item in part]
    return structure.filled([torch.cat(column) for column in zip(*outputs, strict=True)])


def _measured(name: str, metric: Metric, outputs: Any, targets: Any) -> float:
    try:
        return float(metric(outputs, targets))
    except Exception as error:  # whatever a user's function raises
        raise ConfigError(
            f"The metric {name!r} gives no number for all outputs and targets: {type(error).__name__}: {error}"
        ) from error
