"""Ways to break a manifest, so that a rule has something to say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .manifests import Manifest, Manifests

Break = Callable[[Manifests], None]


def at(manifests: Manifests, kind: str, *path: str | int) -> Any:
    """What stands in the one manifest of this kind, at this path."""
    (node,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    found: Any = node
    for key in path:
        found = found[key]
    return found


def put(value: Any, *path: str | int) -> Break:
    """Set what stands at the path, whose first part is a kind."""

    def change(manifests: Manifests) -> None:
        kind, *inner, key = path
        at(manifests, str(kind), *inner)[key] = value

    return change


def drop(*path: str | int) -> Break:
    """Take away what stands at the path."""

    def change(manifests: Manifests) -> None:
        kind, *inner, key = path
        del at(manifests, str(kind), *inner)[key]

    return change


def more(value: Any, *path: str | int) -> Break:
    """Append to the list at the path."""

    def change(manifests: Manifests) -> None:
        kind, *inner = path
        at(manifests, str(kind), *inner).append(value)

    return change


def without(kind: str) -> Break:
    """Take away every manifest of a kind."""

    def change(manifests: Manifests) -> None:
        manifests[:] = [manifest for manifest in manifests if manifest["kind"] != kind]

    return change


def also(manifest: Manifest) -> Break:
    """Add a manifest."""
    return lambda manifests: manifests.append({"metadata": {"name": "later"}, **manifest})
