"""The export: prove, then publish. A gate that fails publishes nothing."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from functools import partial

from shipline.artifact import PROCESSING, REPORT_HTML, REPORT_JSON, Artifact, ArtifactManifest, Model
from shipline.export import gates, report
from shipline.export.proof import Proof, prove
from shipline.export.publish import Content, check_version, publish
from shipline.export.recipe import Recipe
from shipline.export.source import Source


def export(
    source: Source, recipe: Recipe, model: Model, version: str | None = None, executor: Executor | None = None
) -> Artifact:
    """Publish the checkpoint as the recipe says, as a new version of the model.

    Args:
        source: what to export.
        recipe: how, and at what cost.
        model: where to publish.
        version: a number; default: one more than the newest.
        executor: makes and judges the candidates of a search in other processes.

    Raises:
        GateError: a gate failed, with the row or the metric and by how much; nothing was published.
        SignatureError: the module's forward, its signature and its rows do not agree.
        IntegrityError: the checkpoint is damaged, or is not of this class.
        ExistsError: somebody published that version first.
    """
    check_version(model, version)
    proof = prove(source, recipe, executor)
    for candidate in proof.must_pass:
        gates.refuse_failed(f"{model.name} as {candidate.plan}", candidate.verdicts, proof.nearest)
    return publish(model, version, partial(_content, source, recipe, proof, model.name))


def _content(source: Source, recipe: Recipe, proof: Proof, name: str, version: str) -> Content:
    trained, chosen = proof.trained, proof.chosen
    allowed = recipe.allowed_difference(chosen.plan)
    manifest = ArtifactManifest(
        name=name,
        version=version,
        backend=chosen.plan.backend,
        model_file=chosen.plan.backend_class.model_file,
        precision=chosen.precision,
        signature=trained.signature,
        metrics={name: value for name, value in chosen.metrics.items() if math.isfinite(value)},
        verdicts=chosen.verdicts,
        tolerance={
            name: scale * allowed for name, scale in gates.scales(chosen.trained.rows, trained.signature).items()
        },
        serving=proof.serving,
        lineage=source.lineage,
    )
    files = {manifest.model_file: proof.model}
    if source.processing is not None:
        files[PROCESSING] = source.processing.to_json()
    said = report.describe(manifest, proof, recipe)
    page = report.to_html(said, report.pictures(proof))
    files |= {**proof.golden.files(), REPORT_JSON: report.to_json(said), REPORT_HTML: page}
    return manifest, files
