"""Committing an artifact as a version of a model."""

from __future__ import annotations

import re
from collections.abc import Callable

from shipline.artifact import Artifact, ArtifactManifest, Model
from shipline.errors import ConfigError, ExistsError, StoreError
from shipline.store import Publication

_VERSION = re.compile(r"0|[1-9][0-9]{0,17}")  # one spelling each: readers list versions as numbers

#: What a version holds: its manifest, and its files by name.
Content = tuple[ArtifactManifest, dict[str, bytes]]


def check_version(model: Model, version: str | None) -> None:
    """Refuse a version that is no number, or is there, and a place that cannot be read, before anything is measured.

    Raises:
        ConfigError, ExistsError, StoreError: it cannot be published.
    """
    if version is not None and not _VERSION.fullmatch(version):
        raise ConfigError(f"version is {version!r}; versions are numbers, such as 7.")
    if version in model.versions():
        raise ExistsError(f"{model.name} has version {version} already, and what is committed never changes.")


def publish(model: Model, version: str | None, content: Callable[[str], Content]) -> Artifact:
    """Commit what `content` makes for a version; where nobody asked for one and somebody was faster, take the next.

    Raises:
        ExistsError: somebody published that version first.
    """
    while True:
        number = version or str(int((model.versions() or ["0"])[-1]) + 1)
        try:
            return _commit(model, number, content)
        except StoreError:
            # Who commits first also sweeps what others have half written, so losing shows as more than ExistsError.
            if version is not None or number not in model.versions():
                raise


def _commit(model: Model, version: str, content: Callable[[str], Content]) -> Artifact:
    store = model.store.at(version)
    manifest, files = content(version)
    with Publication(store) as publication:
        for name, data in files.items():
            publication.add(name, data)
        artifact = Artifact(store, publication.commit(manifest))
    model.point("stable", version)
    return artifact
