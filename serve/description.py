"""What a server says of itself and its models, in the words of the Open Inference Protocol and of Triton's extensions.

https://github.com/triton-inference-server/server/tree/main/docs/protocol: model configuration, statistics.
"""

from __future__ import annotations

from typing import Any

import shipline
from shipline.serve.metrics import Metrics
from shipline.serve.model import ServedModel
from shipline.serve.repository import Repository
from shipline.signature import TensorSpec

EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "statistics")


def server_metadata() -> dict[str, Any]:
    """Return name, version and extensions."""
    return {"name": "shipline", "version": shipline.__version__, "extensions": list(EXTENSIONS)}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """Return the signature, and what is known of where the model comes from and how it was proved."""
    manifest = model.manifest
    return {
        "name": manifest.name,
        "versions": [manifest.version],
        "platform": _platform(model),
        "inputs": [_tensor(spec) for spec in manifest.signature.inputs],
        "outputs": [_tensor(spec) for spec in manifest.signature.outputs],
        "parameters": {
            "digest": manifest.digest,
            "precision": manifest.precision,
            "max_batch_size": manifest.serving.max_batch_size,
            "longest": manifest.serving.longest,
            "tolerance": manifest.tolerance,
            "metrics": manifest.metrics,
            "verdicts": [verdict.model_dump() for verdict in manifest.verdicts],
            "lineage": manifest.lineage.model_dump(exclude={"checkpoint"}),
        },
    }


def model_config(model: ServedModel) -> dict[str, Any]:
    """Return the configuration as Triton would: dimensions without the batch."""
    manifest, serving = model.manifest, model.manifest.serving
    return {
        "name": manifest.name,
        "platform": _platform(model),
        "backend": manifest.backend,
        "version_policy": {"specific": {"versions": [int(manifest.version)]}},
        "max_batch_size": serving.max_batch_size,
        "input": [_configured(spec) for spec in manifest.signature.inputs],
        "output": [_configured(spec) for spec in manifest.signature.outputs],
        "instance_group": [{"name": manifest.name, "kind": _kind(model), "count": model.instances}],
        "dynamic_batching": {
            "preferred_batch_size": [model.batch_size],
            "max_queue_delay_microseconds": round(model.batch_delay_s * 1e6),
        },
        "default_model_filename": manifest.model_file,
    }


def model_statistics(models: list[ServedModel], metrics: Metrics) -> dict[str, Any]:
    """Return how many requests each model has answered, and how long their parts took."""
    return {"model_stats": [metrics.statistics(model.name, model.version) for model in models]}


def repository_index(repository: Repository, *, ready: bool) -> list[dict[str, str]]:
    """Return the state of each model."""
    return [
        {"name": status.name, "version": status.version, "state": status.state.value, "reason": status.reason}
        for status in repository.index(ready=ready)
    ]


def _platform(model: ServedModel) -> str:
    return f"{model.manifest.backend}_{model.manifest.model_file.rpartition('.')[2]}"


def _kind(model: ServedModel) -> str:
    return "KIND_CPU" if model.device == "cpu" else "KIND_GPU"


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _configured(spec: TensorSpec) -> dict[str, Any]:
    kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(spec.shape[1:])}
