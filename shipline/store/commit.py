"""The one commit protocol, for checkpoints and artifacts alike.

A publication writes every file under a fresh key, `<directory>/<nonce>/<name>`, and last, with create mode, the small
`<directory>/manifest.json` that says which file is where, how long it is and what it hashes to. A directory without its
manifest does not exist for any reader, and of two writers of one directory exactly one gets its manifest in. The
manifest also carries the digest of itself, so that every byte of it is checked before a parser sees it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shipline.errors import ExistsError, IntegrityError, NotFoundError, SchemaError, ShiplineError
from shipline.store.cache import Cache
from shipline.store.entry import FileEntry, measure
from shipline.store.readers import is_read, reading
from shipline.store.store import Data, LocalStore, Store, open_store

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20

_SCHEMA_VERSION = re.compile(rb'"schema_version"\s*:\s*(\d{1,9})')
_DIGEST = re.compile(rb'"digest": "([0-9a-f]{64})"')
_NO_DIGEST = b"0" * 64


class Manifest(BaseModel):
    """What every manifest says; checkpoints and artifacts add to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    SCHEMA: ClassVar[int] = 1

    schema_version: int = 1
    kind: str
    digest: str = _NO_DIGEST.decode()
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    files: dict[str, FileEntry] = {}


M = TypeVar("M", bound=Manifest)


def seal(manifest: M) -> tuple[M, bytes]:
    """Return the manifest with its digest filled in, and the bytes to write."""
    blank = manifest.model_copy(update={"digest": _NO_DIGEST.decode()})
    data = json.dumps(blank.model_dump(mode="json"), indent=1, allow_nan=False).encode()
    digest = hashlib.sha256(data).hexdigest()
    return manifest.model_copy(update={"digest": digest}), data.replace(_NO_DIGEST, digest.encode(), 1)


def unseal(data: bytes, model: type[M], where: str) -> M:
    """Return the manifest in `data`; the digest is checked before anything is parsed.

    Raises:
        IntegrityError: a byte differs from what was written, or it is no manifest of this kind.
        SchemaError: it was written by a newer Shipline.
    """
    _check_schema(data, model, where)
    found = _DIGEST.search(data)
    if len(data) > MAX_MANIFEST_BYTES or found is None:
        raise IntegrityError(f"{where} is no manifest of Shipline, or it is damaged. Publish again.")
    digest = found[1]
    if hashlib.sha256(data.replace(digest, _NO_DIGEST, 1)).hexdigest() != digest.decode():
        raise IntegrityError(f"{where} is damaged: its bytes do not match its digest. Do not use it, publish again.")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise IntegrityError(
            f"{where} is no {model.__name__}: {'.'.join(map(str, first['loc']))}: {first['msg']}."
        ) from error


def _check_schema(data: bytes, model: type[Manifest], where: str) -> None:
    """A newer schema may place its digest elsewhere, so its number is looked for first, without a parser."""
    found = _SCHEMA_VERSION.search(data)
    if found and int(found[1]) > model.SCHEMA:
        raise SchemaError(
            f"{where} has schema version {int(found[1])}; this Shipline reads up to {model.SCHEMA}. "
            "Upgrade: pip install -U shipline"
        )


def fresh_nonce() -> str:
    """Return a name below which a publication may write its files."""
    return f"data-{secrets.token_hex(6)}"


class Publication:
    """Files on their way to becoming a committed directory; as a context manager, removes what was not committed.

    Args:
        directory: to be committed.
        nonce: of a publication that several processes write to; one of them commits it.
    """

    def __init__(self, directory: Store, nonce: str | None = None) -> None:
        self.directory = directory
        self._nonce = nonce or fresh_nonce()
        self._files: dict[str, FileEntry] = {}
        self._committed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._committed:
            self._remove_quietly(self._nonce)

    def add(self, name: str, data: Data) -> FileEntry:
        """Write one file under its fresh key and remember its size and digest."""
        entry = FileEntry(key=f"{self._nonce}/{name}", **measure(data))
        self.directory.write(entry.key, data)
        self._files[name] = entry
        return entry

    def include(self, files: Mapping[str, FileEntry]) -> None:
        """Take files that another process has added."""
        self._files.update(files)

    def digests(self) -> dict[str, str]:
        """Return the sha256 of each file added."""
        return {name: entry.sha256 for name, entry in self._files.items()}

    def commit(self, manifest: M, replace: bool = False) -> M:
        """Make the directory exist: write the manifest, unless somebody else did.

        With `replace`, what was committed there before is replaced at once: readers see the old files or the new ones.

        Raises:
            ExistsError: another publication of this directory was committed first; nothing changed.
        """
        sealed, data = seal(manifest.model_copy(update={"files": dict(self._files)}))
        try:
            (self.directory.write if replace else self.directory.create)(MANIFEST, data)
        except ExistsError as error:
            raise ExistsError(
                f"{self.directory} was committed already, and what is committed never changes."
            ) from error
        self._committed = True
        self._sweep()
        return sealed

    def _sweep(self) -> None:
        """Remove what earlier, unfinished publications of this directory left behind."""
        with contextlib.suppress(ShiplineError):  # it is committed, whatever becomes of the leftovers
            leftovers = [n for n in self.directory.list() if n.startswith("data-") and n != self._nonce]
            if leftovers and is_read(self.directory):  # what was replaced just now, perhaps: the next commit sweeps it
                return
            for name in leftovers:
                self._remove_quietly(name)

    def _remove_quietly(self, key: str) -> None:
        # The caller's own error matters more than leftovers, which no reader sees and the next commit sweeps.
        with contextlib.suppress(ShiplineError):
            self.directory.remove(key)


class Committed(Generic[M]):
    """A committed directory: its manifest, and its files, checked whenever they are read."""

    def __init__(self, store: Store, manifest: M) -> None:
        self.store = store
        self.manifest = manifest
        self._readings = 0  # within each other, of which the first tells others

    @classmethod
    def open(cls, url: str | Store, model: type[M]) -> Self:
        """Read and check the manifest below `url`.

        Raises:
            NotFoundError: nothing was committed there.
            IntegrityError: the manifest is damaged, or belongs to something else.
            SchemaError: it was written by a newer Shipline.
        """
        store = open_store(url)
        try:
            data = store.read(MANIFEST)
        except NotFoundError as error:
            raise NotFoundError(f"{store} has no {MANIFEST}: nothing was committed there. Check the URL.") from error
        return cls(store, unseal(data, model, f"{store}/{MANIFEST}"))

    @property
    def url(self) -> str:
        """The directory's URL, without credentials."""
        return str(self.store)

    def __contains__(self, name: str) -> bool:
        return name in self.manifest.files

    def read(self, name: str) -> bytes:
        """Return a file's bytes, through the local cache where the store is remote.

        Raises:
            IntegrityError: the manifest has no such file, the store lost it, or its bytes are not those committed.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise IntegrityError(f"{self} has no file {name!r}; it has {', '.join(self.manifest.files)}.")
        where = f"{self}/{entry.key}"
        try:
            if isinstance(self.store, LocalStore):
                return entry.check(self.store.read(entry.key), where)
            return Cache.default().read(self.store, entry)
        except NotFoundError as error:
            raise IntegrityError(f"{where} is missing, though its manifest lists it. Publish again.") from error

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the directory from being deleted while it is read, where the store can be written.

        Raises:
            NotFoundError: it was deleted, or replaced, since it was opened.
        """
        if self._readings:
            yield
            return
        with reading(self.store, self._check_it_stands):
            self._readings += 1
            try:
                yield
            finally:
                self._readings -= 1

    def _check_it_stands(self) -> None:
        try:
            found = _DIGEST.search(self.store.read(MANIFEST))
        except NotFoundError as error:
            raise NotFoundError(f"{self} was deleted a moment ago: read a newer one.") from error
        if found is None or found[1].decode() != self.manifest.digest:
            raise NotFoundError(f"{self} was replaced after it was opened: open it again.")

    def __str__(self) -> str:
        return self.url


def discard(parent: Store, name: str) -> bool:
    """Delete a committed directory, unless somebody reads it; return whether it is gone.

    Its manifest goes first, so that no reader finds a directory that is going. See `shipline.store.readers`.
    """
    directory = parent.at(name)
    if is_read(directory):
        return False
    try:
        manifest = directory.read(MANIFEST)
    except NotFoundError:  # left behind by one that was stopped here, or nothing at all
        manifest = None
    else:
        directory.remove(MANIFEST)
    if is_read(directory):
        if manifest is not None:  # else another who deletes took it away, and puts it back
            directory.write(MANIFEST, manifest)
        return False
    parent.remove(name)
    return True
