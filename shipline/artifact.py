"""An artifact: what export publishes and serve loads, as one committed directory `<repository>/<model>/<version>/`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from shipline.errors import NotFoundError
from shipline.lineage import Lineage
from shipline.signature import Signature
from shipline.store import (
    Committed,
    Manifest,
    Store,
    absolute,
    check_name,
    is_name,
    open_store,
    read_pointers,
    split,
    write_pointers,
)
from shipline.store.commit import MANIFEST

CHANNELS = "channels.json"
PROCESSING = "processing.json"
GOLDEN = "golden.json"
GOLDEN_TENSORS = "golden.safetensors"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


class Verdict(BaseModel):
    """The outcome of one gate: what was measured, what was allowed, and a sentence for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gate: str
    passed: bool
    measured: float | None
    limit: float | None
    message: str


class ServingSettings(BaseModel):
    """The settings that were best on the machine that exported; servers start from them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_batch_size: int = Field(default=32, ge=1)  # rows of a request, and of the largest batch that was proved
    preferred_batch_size: int | None = Field(default=None, ge=1)  # rows that servers join; default: the largest
    threads: int = Field(default=1, ge=1)
    compute: Literal["float32", "bfloat16"] = "float32"  # what a backend that has the choice computes in
    longest: int | None = Field(default=None, ge=1)  # rows that differ in length: how long the longest may be


class ArtifactManifest(Manifest):
    """What an artifact says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: Literal["artifact"] = "artifact"
    name: str
    version: str
    backend: str
    model_file: str
    precision: str
    signature: Signature
    metrics: dict[str, float] = {}
    verdicts: list[Verdict] = []
    tolerance: dict[str, float]  # output name -> largest allowed absolute difference from the trained module
    serving: ServingSettings = ServingSettings()
    lineage: Lineage = Lineage()


class Artifact(Committed[ArtifactManifest]):
    """A committed artifact."""


class Model:
    """All versions of one model, below `<repository>/<model>`."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = check_name("model", name)

    def versions(self) -> list[str]:
        """Return the committed versions, oldest first."""
        numbers = sorted(int(name) for name in self.store.list() if name.isdecimal())
        return [str(number) for number in numbers if self.store.at(str(number)).exists(MANIFEST)]

    def open(self, version: str) -> Artifact:
        """Return one version; NotFoundError lists those that are there."""
        try:
            return Artifact.open(self.store.at(check_name("version", version)), ArtifactManifest)
        except NotFoundError as error:
            known = ", ".join(self.versions()) or "none"
            raise NotFoundError(
                f"Model {self.name!r} has no version {version!r} in {self.store}; known: {known}."
            ) from error

    def channels(self) -> dict[str, dict[str, Any]]:
        """Return the channels: name -> version and weight."""
        return read_pointers(self.store, CHANNELS)

    def point(self, channel: str, version: str) -> None:
        """Make a channel mean this version, with all of its traffic."""
        write_pointers(self.store, CHANNELS, {channel: {"version": version, "weight": 100}})

    def stable(self) -> Artifact:
        """Return the version that the channel `stable` means, or the newest where there is no such channel."""
        channels = self.channels()
        if "stable" in channels:
            return self.open(str(channels["stable"].get("version")))
        versions = self.versions()
        if not versions:
            raise NotFoundError(f"{self.store} has no committed version of model {self.name!r}. Export one first.")
        return self.open(versions[-1])


def open_model(url: str) -> Model:
    """Return the model whose versions lie below `url`; its name is the URL's last part."""
    return Model(open_store(url), split(absolute(url))[1])


def find_artifacts(url: str) -> list[Artifact]:
    """Return what to serve from `url`: one version, one model's stable version, or that of every model below it.

    Raises:
        NotFoundError: nothing committed is there.
        IntegrityError: a manifest is damaged.
    """
    store = open_store(url)
    if store.exists(MANIFEST):
        return [Artifact.open(store, ArtifactManifest)]
    names = store.list()
    if _is_model(store, names):
        return [open_model(url).stable()]
    models = [Model(store.at(name), name) for name in names if is_name(name)]
    found = [model.stable() for model in models if model.versions()]
    if not found:
        raise NotFoundError(
            f"No artifact below {store}. Give a repository, a model or a version; `shipline export` makes one."
        )
    return found


def _is_model(store: Store, names: list[str]) -> bool:
    """Whether what lies there are versions; a repository may hold a model called 2024, but a version has a manifest."""
    return CHANNELS in names or any(name.isdecimal() and store.at(name).exists(MANIFEST) for name in names)


def find_artifact(url: str, name: str, version: str | None = None) -> Artifact:
    """Return what to serve from `url` for the model `name`: the version asked for, but for a `url` of one version.

    Args:
        url: of a repository, a model or a version.
        name: of the model.
        version: None is the stable one.

    Raises:
        NotFoundError: there is no such model, or no such version.
        IntegrityError: a manifest is damaged.
    """
    store = open_store(url)
    if store.exists(MANIFEST) or _is_model(store, store.list()):
        (found,) = find_artifacts(url)
        if found.manifest.name != name:
            raise NotFoundError(f"{store} is of the model {found.manifest.name!r}; there is no {name!r}.")
        if version in (None, found.manifest.version) or store.exists(MANIFEST):
            return found
        return open_model(url).open(version)
    model = Model(store.at(name), name)
    return model.stable() if version is None else model.open(version)
