"""The report: what was measured, as JSON for programs and as one HTML page for people."""

from __future__ import annotations

import dataclasses
import math
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pydantic_core

from shipline.export.report.page import Pictures, render
from shipline.export.report.rows import Shown, show_input, show_raw

if TYPE_CHECKING:
    from shipline.artifact import ArtifactManifest
    from shipline.export.candidate import Candidate
    from shipline.export.comparison import Agreement, Differing, Scored
    from shipline.export.proof import Proof
    from shipline.export.recipe import Recipe

__all__ = ["describe", "pictures", "to_html", "to_json"]


def describe(manifest: ArtifactManifest, proof: Proof, recipe: Recipe) -> dict[str, Any]:
    """Return the report as plain data."""
    trained = proof.trained
    return {
        "schema_version": 1,
        "name": manifest.name,
        "version": manifest.version,
        "precision": manifest.precision,
        "backend": manifest.backend,
        "created_at": manifest.created_at.isoformat(),
        "signature": manifest.signature.model_dump(mode="json"),
        "recipe": dataclasses.asdict(recipe),
        "metric": {"name": trained.metric, "mode": trained.mode},
        "trained": {
            "metrics": trained.metrics,
            "bytes": trained.weights_bytes,
            **dataclasses.asdict(trained.cost),
            "rows": trained.rows.seen,
            "proof_rows": len(trained.rows),
        },
        "candidates": [_described(candidate, proof) for candidate in proof.candidates],
        "worst_rows": [_differing(each, proof) for each in _worst(proof)],
        "refused": proof.refused,
        "serving": {
            "batch": proof.serving.preferred_batch_size,
            "threads": proof.serving.threads,
            "measured": [dataclasses.asdict(point) for point in proof.points],
        },
        "lineage": manifest.lineage.model_dump(mode="json"),
        "exported_with": {"python": platform.python_version(), "machine": platform.machine(), **_versions()},
    }


def to_json(content: dict[str, Any]) -> bytes:
    """Return the report as JSON."""
    return pydantic_core.to_json(content, indent=1, inf_nan_mode="null")


def pictures(proof: Proof) -> dict[tuple[int, str], bytes]:
    """Return the pictures, as PNG, of the rows that differ most: by the row's number and the name of what is shown."""
    shown = {(each.row, part.name): part.picture for each in _worst(proof) for part in _shown(each.row, proof)}
    return {place: picture for place, picture in shown.items() if picture is not None}


def to_html(content: dict[str, Any], pictures: Pictures | None = None) -> bytes:
    """Return the report as one HTML page that needs nothing else; rows without a picture are told in words."""
    return render(content, pictures or {})


def _described(candidate: Candidate, proof: Proof) -> dict[str, Any]:
    return {
        "name": str(candidate.plan),
        "precision": candidate.precision,
        "backend": candidate.plan.backend,
        "passes": [repr(each) for each in (*candidate.plan.module_passes, *candidate.plan.passes)],
        "chosen": candidate is proof.chosen,
        "on_front": any(candidate is each for each in proof.front),
        "left_out": candidate.left_out,
        "recalled": candidate.recalled,
        "notes": candidate.notes,
        "metrics": candidate.metrics,
        "bytes": candidate.size,
        **dataclasses.asdict(candidate.trained.cost),
        "latency": [
            {
                "batch": taken.batch,
                "median_ms": taken.median_ms,
                "p10_ms": taken.p10_ms,
                "p90_ms": taken.p90_ms,
                "rounds_ms": list(taken.rounds_ms),
                "float32_ms": plain.median_ms,
                "speedup": plain.median_ms / taken.median_ms,
            }
            for taken, plain in zip(candidate.latencies, candidate.against, strict=True)
        ],
        "verdicts": [verdict.model_dump(mode="json") for verdict in candidate.verdicts],
        "classes": [_score(each) for each in (candidate.comparison.scores if candidate.comparison else ())],
        "agreement": [_agreement(each) for each in (candidate.comparison.agreement if candidate.comparison else ())],
    }


def _score(score: Scored) -> dict[str, Any]:
    return {**dataclasses.asdict(score), "drop": score.drop}


def _agreement(agreement: Agreement) -> dict[str, Any]:
    return {
        "output": agreement.output,
        "rows": agreement.rows,
        "agreed": agreement.agreed,
        "classes": [dataclasses.asdict(each) for each in agreement.classes],
    }


def _worst(proof: Proof) -> list[Differing]:
    return proof.chosen.comparison.worst if proof.chosen.comparison else []


def _differing(differing: Differing, proof: Proof) -> dict[str, Any]:
    shown = [{"name": each.name, "text": each.text, "columns": each.columns} for each in _shown(differing.row, proof)]
    finite = math.isfinite(differing.difference)
    return {
        **dataclasses.asdict(differing),
        "difference": differing.difference if finite else None,
        "shown": shown,
    }


def _shown(row: int, proof: Proof) -> list[Shown]:
    """The raw row where it is known, else what forward was given."""
    if row in proof.raw:
        number, raw = proof.raw[row]
        return [show_raw(f"raw row {number}", raw)]
    return [show_input(name, array[row]) for name, array in proof.trained.rows.inputs.items()]


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "onnxscript", "numpy")}
