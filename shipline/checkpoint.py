"""A checkpoint: the weights of a module and the state of the run that trained it, as one committed directory.

Reading one cannot run code: the weights are safetensors (one file, or one of each worker and an index), the state is
safetensors and JSON, the class is named but never imported from here; whoever rebuilds the module says which it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict

from shipline.errors import IntegrityError, NotFoundError, ShiplineError
from shipline.lineage import Lineage
from shipline.shards import ShardIndex, assemble
from shipline.store import Committed, Manifest, Store, open_store, read_pointers, redact, split

WEIGHTS = "weights.safetensors"
#: In place of it, where workers hold a part each: which tensor lies where.
WEIGHTS_INDEX = "weights.index.json"
STATE = "state/state.json"
STATE_TENSORS = "state/state.safetensors"
STATE_INDEX = "state/shards.index.json"
POINTERS = "checkpoints.json"

T = TypeVar("T")


class CheckpointManifest(Manifest):
    """What a checkpoint says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: Literal["checkpoint"] = "checkpoint"
    module: str  # class path, for people to read; it decides nothing
    hyper_parameters: dict[str, Any] = {}
    not_rebuildable: list[str] = []  # constructor arguments that are no plain data and are therefore not kept
    tied_weights: dict[str, str] = {}  # name -> name of the tensor that it shares
    epoch: int
    global_step: int
    metrics: dict[str, float | None] = {}
    monitor: str | None = None  # the metric that decided what is best ...
    mode: Literal["min", "max"] | None = None  # ... and which way is better
    lineage: Lineage = Lineage()


class Checkpoint(Committed[CheckpointManifest]):
    """A committed checkpoint."""

    @property
    def is_sharded(self) -> bool:
        """Whether its weights lie in parts, as the workers that wrote it held them."""
        return WEIGHTS_INDEX in self

    def index(self, name: str) -> ShardIndex:
        """Return which tensor lies where; IntegrityError where the file does not say it."""
        return ShardIndex.parse(self.read(name), f"{self}/{name}")

    def weights(self, parse: Callable[[bytes], dict[str, T]]) -> dict[str, T]:
        """Return the state dict, as `parse` reads safetensors; names that share a tensor come back sharing it.

        Raises:
            IntegrityError: the file is damaged.
            NotFoundError: the checkpoint was deleted since it was opened.
        """
        with self.kept():
            data = assemble(self.index(WEIGHTS_INDEX), self.read, str(self)) if self.is_sharded else self.read(WEIGHTS)
        try:
            tensors = parse(data)
            return tensors | {name: tensors[source] for name, source in self.manifest.tied_weights.items()}
        except Exception as error:  # the format's own error has no base of ours, and no module that is imported here
            raise IntegrityError(f"{self}/{WEIGHTS} holds no weights: {error}. Do not use it, train again.") from error


def open_checkpoint(url: str) -> Checkpoint:
    """Return the checkpoint at `url`: its directory, or a name in the `checkpoints.json` beside it, such as `best`.

    Raises:
        NotFoundError: no checkpoint is there; the message lists the names that are.
        IntegrityError: its manifest is damaged.
        SchemaError: it was written by a newer Shipline.
    """
    try:
        return Checkpoint.open(url, CheckpointManifest)
    except NotFoundError:
        parent, name = split(url)
        store = open_store(parent)
        pointers = read_pointers(store, POINTERS)
        target = pointers.get(name, {}).get("checkpoint")
        if not isinstance(target, str):
            raise NotFoundError(_nothing(url, store.list(), sorted(pointers))) from None
        return Checkpoint.open(store.at(target), CheckpointManifest)


def checkpoints_beside(url: str) -> list[Checkpoint]:
    """Return the checkpoints in the directory that `<parent>/<name>` points into, or would; the newest first.

    Those whose manifests are damaged are left out.
    """
    parent, name = split(url)
    store = open_store(parent)
    try:
        target = read_pointers(store, POINTERS).get(name, {}).get("checkpoint")
    except IntegrityError:
        target = None
    if isinstance(target, str):
        directory = store.at(target.rpartition("/")[0]) if "/" in target else store
    else:
        directory = _newest_run(store)
    found = []
    for entry in directory.list():
        with contextlib.suppress(ShiplineError):
            found.append(Checkpoint.open(directory.at(entry), CheckpointManifest))
    return sorted(found, key=lambda checkpoint: checkpoint.manifest.created_at, reverse=True)


def _newest_run(store: Store) -> Store:
    """The checkpoints of an experiment's newest run, or of the run that this is, or what lies here."""
    entries = store.list()
    numbers = [int(n) for entry in entries if (n := entry.removeprefix("version_")).isdecimal() and n != entry]
    if numbers:
        return store.at(f"version_{max(numbers)}/checkpoints")
    return store.at("checkpoints") if "checkpoints" in entries else store


def _nothing(url: str, beside: list[str], names: list[str]) -> str:
    found = f"names known there: {', '.join(names)}" if names else f"found beside it: {', '.join(beside) or 'nothing'}"
    return f"No checkpoint at {redact(url)}; {found}. Give a checkpoint's directory, or <run>/best or <run>/last."
