"""The proof: what is known of the trained module, and what every gate says of the graphs made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import nn

from shipline.artifact import ServingSettings, Verdict
from shipline.checkpoint import WEIGHTS, Checkpoint
from shipline.errors import ConfigError, GateError, nearest
from shipline.export import gates, golden
from shipline.export.convert import to_onnx
from shipline.export.latency import Latency, measure
from shipline.export.quantize import to_int8
from shipline.export.recipe import Recipe
from shipline.export.rows import Rows, recording, replaced_forward
from shipline.export.runtime import Runtime
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


@dataclass
class Candidate:
    """A graph on its way through the gates."""

    precision: str
    model: bytes
    runtime: Runtime
    metrics: dict[str, float] = field(default_factory=dict)
    latencies: list[Latency] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


@dataclass
class Proof:
    """What is known of the trained module, and what was measured of the candidates."""

    module: nn.Module
    rows: Rows
    signature: Signature
    metric: str
    mode: str
    metrics: dict[str, float]
    weights_bytes: int
    candidates: list[Candidate] = field(default_factory=list)
    golden: golden.Golden | None = None
    worst: gates.Worst | None = None

    @property
    def chosen(self) -> Candidate:
        """The candidate that the recipe asks for."""
        return self.candidates[-1]


def prove(source: Source, recipe: Recipe) -> Proof:
    """Build the candidates and put the one that the recipe asks for through every gate."""
    proof = _look_at_trained(source, recipe)
    settings = ServingSettings(max_batch_size=recipe.max_batch_size)
    plain = to_onnx(proof.module, proof.rows, proof.signature)
    proof.candidates.append(Candidate("float32", plain, Runtime(plain, settings)))
    if recipe.precision == "int8":
        small = to_int8(plain, _calibration_rows(proof, source, recipe), proof.signature)
        proof.candidates.append(Candidate("int8", small, Runtime(small, settings)))
    _measure_latencies(proof, recipe)
    for candidate in proof.candidates:
        _judge(proof, candidate, source, recipe)
    _judge_source(proof, source, recipe)
    _choose_golden(proof, source, recipe)
    return proof


def _look_at_trained(source: Source, recipe: Recipe) -> Proof:
    module = rebuild(source.module_class, source.checkpoint)
    with recording(module, recipe.proof_rows) as rows:
        metrics = source.evaluate(module)
    signature = signature_of(module, rows)
    _check_finite(rows, signature)
    name, mode = _metric_of(recipe, source.checkpoint, metrics)
    return Proof(module, rows, signature, name, mode, metrics, source.checkpoint.manifest.files[WEIGHTS].size)


def _check_finite(rows: Rows, signature: Signature) -> None:
    """NaN and infinity can be compared with nothing, here or in the server."""
    for spec, output in zip(signature.outputs, rows.outputs, strict=True):
        bad = ~np.isfinite(output).reshape(len(output), -1).all(axis=1)
        if bad.any():
            raise GateError(
                f"The trained module's own output {spec.name!r} is NaN or infinite in {bad.sum()} of {len(bad)} "
                f"validation rows, first in row {bad.argmax()}. Nothing was published."
            )


def _calibration_rows(proof: Proof, source: Source, recipe: Recipe) -> Rows:
    """Return training rows: the same ones each time, though a loader that shuffles draws from torch's generator."""
    with recording(proof.module, recipe.calibration_rows) as rows, torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        source.evaluate(proof.module, split="train", rows=recipe.calibration_rows)
    return rows


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


def _measure_latencies(proof: Proof, recipe: Recipe) -> None:
    runtimes = {candidate.precision: candidate.runtime for candidate in proof.candidates}
    for batch in sorted({1, recipe.max_batch_size}):
        for precision, taken in measure(runtimes, proof.rows.inputs, batch).items():
            next(c for c in proof.candidates if c.precision == precision).latencies.append(taken)


def _judge(proof: Proof, candidate: Candidate, source: Source, recipe: Recipe) -> None:
    """Put a candidate through the gates."""
    runtime, rows, signature = candidate.runtime, proof.rows, proof.signature
    assert rows.structure is not None  # signature_of refuses rows that were never recorded
    forward = runtime.forward_for(proof.module, signature, rows.structure)
    with replaced_forward(proof.module, forward):
        candidate.metrics = source.evaluate(proof.module)
    limit = recipe.allowed_difference(candidate.precision)
    same, proof.worst = gates.parity(runtime, rows, signature, recipe.max_batch_size, limit)
    candidate.verdicts = [
        same,
        gates.batch_invariance(runtime, rows, signature, recipe.max_batch_size),
        gates.metric(proof.metric, proof.mode, proof.metrics[proof.metric], candidate.metrics[proof.metric], recipe),
    ]
    if candidate.precision != "float32":
        plain = proof.candidates[0]
        candidate.verdicts.append(gates.latency(candidate.latencies, plain.latencies, recipe))
        candidate.verdicts.append(gates.size(len(candidate.model), len(plain.model)))


def _judge_source(proof: Proof, source: Source, recipe: Recipe) -> None:
    """Compare the rebuilt module with what the run itself measured, where it did."""
    recorded = source.checkpoint.manifest.metrics.get(proof.metric)
    if recorded is not None:
        found = proof.metrics[proof.metric]
        proof.chosen.verdicts.append(gates.rebuilt(proof.metric, proof.mode, recorded, found, recipe))


def _choose_golden(proof: Proof, source: Source, recipe: Recipe) -> None:
    if source.processing is None:
        assert proof.worst is not None
        proof.golden = golden.from_rows(proof.rows, proof.signature, recipe.golden_rows, proof.worst.row)
        return
    proof.golden, verdict = golden.from_raw(
        proof.module, source.processing, source.raw_rows(), proof.rows, proof.signature, recipe.golden_rows
    )
    proof.chosen.verdicts.append(verdict)
