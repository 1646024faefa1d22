"""The export: prove, then publish. A gate that fails publishes nothing."""

from __future__ import annotations

import math
import re

from shipline.artifact import PROCESSING, REPORT_HTML, REPORT_JSON, Artifact, ArtifactManifest, Model, ServingSettings
from shipline.checkpoint import Checkpoint
from shipline.errors import ConfigError, ExistsError, GateError, StoreError
from shipline.export import gates, report
from shipline.export.proof import Candidate, Proof, Source, prove
from shipline.export.recipe import Recipe
from shipline.store import Publication

MODEL_FILE = "model.onnx"

_VERSION = re.compile(r"0|[1-9][0-9]{0,17}")  # one spelling each: readers list versions as numbers


def export(source: Source, recipe: Recipe, model: Model, version: str | None = None) -> Artifact:
    """Publish the checkpoint as the recipe says, as a new version of the model.

    Args:
        source: what to export.
        recipe: how, and at what cost.
        model: where to publish.
        version: a number; default: one more than the newest.

    Raises:
        GateError: a gate failed, with the row or the metric and by how much; nothing was published.
        SignatureError: the module's forward, its signature and its rows do not agree.
        IntegrityError: the checkpoint is damaged, or is not of this class.
        ExistsError: somebody published that version first.
    """
    if version is not None and not _VERSION.fullmatch(version):
        raise ConfigError(f"version is {version!r}; versions are numbers, such as 7.")
    if version is not None and version in model.versions():
        raise ExistsError(f"{model.name} has version {version} already, and what is committed never changes.")
    proof = prove(source, recipe)
    for candidate in proof.candidates:  # a graph is no better than the float32 graph that it was made of
        _refuse_failed(candidate, model)
    return _publish(source, recipe, proof, model, version)


def _refuse_failed(candidate: Candidate, model: Model) -> None:
    failed = [verdict for verdict in candidate.verdicts if not verdict.passed]
    if failed:
        lines = "\n".join(f"  {verdict.gate}: {verdict.message}." for verdict in failed)
        raise GateError(
            f"{model.name} as {candidate.precision} failed {len(failed)} of {len(candidate.verdicts)} gates; "
            f"nothing was published:\n{lines}"
        )


def _publish(source: Source, recipe: Recipe, proof: Proof, model: Model, version: str | None) -> Artifact:
    """Commit the artifact; where nobody asked for a certain version and somebody was faster, take the next one."""
    while True:
        number = version or str(int((model.versions() or ["0"])[-1]) + 1)
        try:
            return _commit(source, recipe, proof, model, number)
        except StoreError:
            # Who commits first also sweeps what others have half written, so losing shows as more than ExistsError.
            if version is not None or number not in model.versions():
                raise


def _commit(source: Source, recipe: Recipe, proof: Proof, model: Model, version: str) -> Artifact:
    assert proof.golden is not None
    chosen, store = proof.chosen, model.store.at(version)
    allowed = recipe.allowed_difference(chosen.precision)
    manifest = ArtifactManifest(
        name=model.name,
        version=version,
        backend="onnxruntime",
        model_file=MODEL_FILE,
        precision=chosen.precision,
        signature=proof.signature,
        metrics={name: value for name, value in chosen.metrics.items() if math.isfinite(value)},
        verdicts=chosen.verdicts,
        tolerance={name: scale * allowed for name, scale in gates.scales(proof.rows, proof.signature).items()},
        serving=ServingSettings(max_batch_size=recipe.max_batch_size),
        lineage=source.checkpoint.manifest.lineage.model_copy(
            update={
                "checkpoint": _place(source.checkpoint),
                "checkpoint_digest": source.checkpoint.manifest.digest,
            }
        ),
    )
    content = report.describe(manifest, proof, recipe)
    with Publication(store) as publication:
        publication.add(MODEL_FILE, chosen.model)
        if source.processing is not None:
            publication.add(PROCESSING, source.processing.to_json())
        for name, data in proof.golden.files().items():
            publication.add(name, data)
        publication.add(REPORT_JSON, report.to_json(content))
        publication.add(REPORT_HTML, report.to_html(content))
        artifact = Artifact(store, publication.commit(manifest))
    model.point("stable", version)
    return artifact


def _place(checkpoint: Checkpoint) -> str:
    """Where the checkpoint is: its URL, or on this machine the end of its path, without where this user's files lie."""
    return checkpoint.url if "://" in checkpoint.url else "/".join(checkpoint.url.split("/")[-4:])
