"""What rendered manifests hold."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Manifest = dict[str, Any]
Manifests = list[Manifest]
Container = dict[str, Any]

_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def render(folder: Path) -> Manifests:
    return [document for document in yaml.safe_load_all(_rendered(folder)) if document]


@cache
def _rendered(folder: Path) -> str:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # kustomize warns of what is deprecated
    return done.stdout


class Pod(NamedTuple):
    """The specification of a pod, wherever it stands, and what belongs to it."""

    owner: Manifest
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def where(self) -> str:
        return title(self.owner)

    @property
    def containers(self) -> list[Container]:
        kinds = ("initContainers", "containers", "ephemeralContainers")
        return [container for kind in kinds for container in self.spec.get(kind, [])]

    @property
    def main(self) -> Container:
        container: Container = self.spec["containers"][0]
        return container

    @property
    def volumes(self) -> list[dict[str, Any]]:
        return list(self.spec.get("volumes", []))

    def mounted(self, container: Container) -> dict[str, dict[str, Any]]:
        """The volume at each path at which the container sees one."""
        by_name = {volume["name"]: volume for volume in self.volumes}
        return {mount["mountPath"]: by_name[mount["name"]] for mount in container.get("volumeMounts", [])}


def title(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def of_kind(manifests: Manifests, *kinds: str) -> Manifests:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def pods(manifests: Manifests) -> list[Pod]:
    """Every pod specification, also those deep inside a CronJob or a custom resource."""
    return [pod for manifest in manifests for pod in _pods(manifest, manifest, {})]


def _pods(owner: Manifest, node: Any, labels: dict[str, str]) -> Iterator[Pod]:
    if isinstance(node, dict):
        if isinstance(node.get("containers"), list):
            yield Pod(owner, labels, node)
        labels = (node.get("metadata") or {}).get("labels") or {}
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    for child in children:
        yield from _pods(owner, child, labels)


def servers(manifests: Manifests) -> list[Pod]:
    """The pods that run until they are stopped."""
    return [pod for pod in pods(manifests) if pod.owner["kind"] in ("Deployment", "StatefulSet")]


def containers(found: list[Pod]) -> Iterator[tuple[str, Pod, Container]]:
    """Every container, and the words that say where it is."""
    for pod in found:
        for container in pod.containers:
            yield f"{pod.where}, container {container['name']}", pod, container


def texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a manifest, and the key that it stands under."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict):
        for name, child in node.items():
            yield from texts(child, name)
    elif isinstance(node, list):
        for child in node:
            yield from texts(child, key)


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert not selector.get("matchExpressions"), "teach this function what matchExpressions means"
    wanted: dict[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def quantity(text: str | int) -> float:
    """`512Mi` as a number."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(text))
    assert found is not None, text
    return float(found[1]) * _UNITS[found[2]]


def environment(container: Container, manifests: Manifests) -> dict[str, str | None]:
    """The variables that are certain to be set; None where the value is not in the manifests."""
    maps = {manifest["metadata"]["name"]: manifest.get("data", {}) for manifest in of_kind(manifests, "ConfigMap")}
    found: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        found |= maps.get(source.get("configMapRef", {}).get("name"), {})
    return found | {variable["name"]: variable.get("value") for variable in container.get("env", [])}


def port_number(port: str | int | None, container: Container) -> int | None:
    """The number of a port that may be given by its name; None where the container has no such port."""
    ports = container.get("ports", [])
    return next((p["containerPort"] for p in ports if port in (p.get("name", ""), p["containerPort"])), None)
