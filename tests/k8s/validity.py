"""What Kubernetes, and the operator of Ray, would take."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator

from .manifests import Manifest

_RAY = "ray.io/v1"


def validate(manifest: Manifest, version: str) -> None:
    """Fail where the manifest is not valid for this version of Kubernetes; unknown fields are not, either."""
    if manifest["apiVersion"] != _RAY:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    _valid(manifest["kind"]).validate(manifest["spec"])


@cache
def _valid(kind: str) -> Draft202012Validator:
    """What the `spec` of this kind must be. It holds Kubernetes' own schema of a pod."""
    whole = _strict(json.loads((Path(__file__).parent / "crds" / "rayjob-ray-v1.json").read_text()))
    job = whole["properties"]["spec"]
    return Draft202012Validator({"RayJob": job, "RayCluster": job["properties"]["rayClusterSpec"]}[kind])


def _strict(node: Any) -> Any:
    """The same schema, but for fields that it does not name: Kubernetes drops them without an error."""
    if isinstance(node, list):
        return [_strict(child) for child in node]
    if not isinstance(node, dict):
        return node
    # Below `properties` stand names of fields, one of which may be called properties.
    node = {
        key: {name: _strict(child) for name, child in value.items()} if key == "properties" else _strict(value)
        for key, value in node.items()
    }
    is_open = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
    return node if is_open or "properties" not in node else {**node, "additionalProperties": False}
