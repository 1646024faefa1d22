"""Files of remote stores on this machine's disk, keyed by digest and shared by its processes."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from shipline.errors import ConfigError, IntegrityError
from shipline.store.entry import FileEntry
from shipline.store.store import Store

logger = logging.getLogger(__name__)

CHUNK = 16 << 20
DEFAULT_LIMIT = 20 << 30


def cache_root() -> Path:
    """Return SHIPLINE_CACHE_DIR, or the user's cache directory; what else is remembered there has directories below."""
    root = os.environ.get("SHIPLINE_CACHE_DIR")
    return Path(root) if root else user_cache_path("shipline")


class Cache:
    """A directory of files named by their sha256, at most `limit` bytes of them; the least recently used go first."""

    def __init__(self, root: Path, limit: int = DEFAULT_LIMIT) -> None:
        self._root = root
        self._limit = limit

    @classmethod
    def default(cls) -> Cache:
        """Return the cache in SHIPLINE_CACHE_DIR, or the user's cache directory, of SHIPLINE_CACHE_BYTES."""
        limit = os.environ.get("SHIPLINE_CACHE_BYTES", str(DEFAULT_LIMIT))
        if not limit.isdecimal():
            raise ConfigError(f"SHIPLINE_CACHE_BYTES is {limit!r}; set a number of bytes.")
        return cls(cache_root(), int(limit))

    def read(self, store: Store, entry: FileEntry) -> bytes:
        """Return the file's bytes, checked; fetch them from `store` unless they are here.

        Of several processes that want the same file, one fetches it and the others wait for it. A disk that cannot be
        written costs the caching, not the answer.
        """
        if (data := self._cached(entry)) is not None:
            return data
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with FileLock(self._root / f"{entry.sha256}.lock"):
                return self._fetch(store, entry)
        except OSError as error:
            logger.warning("The cache %s cannot be used (%s); reading %s directly.", self._root, error.strerror, store)
            return entry.check(store.read(entry.key), f"{store}/{entry.key}")

    def _cached(self, entry: FileEntry) -> bytes | None:
        path = self._root / entry.sha256
        try:
            data = entry.check(path.read_bytes(), str(path))
            os.utime(path)
        except OSError:
            return None
        except IntegrityError:
            logger.warning("%s was damaged on this disk; fetching it again.", path)
            path.unlink(missing_ok=True)
            return None
        return data

    def _fetch(self, store: Store, entry: FileEntry) -> bytes:
        if (data := self._cached(entry)) is not None:
            return data
        part = self._root / f"{entry.sha256}.part"
        where = f"{store}/{entry.key}"
        resumed = part.exists()
        self._download(store, entry, part)
        try:
            data = entry.check(part.read_bytes(), where)
        except IntegrityError:
            part.unlink()
            if resumed:  # what an earlier process left may be what is wrong
                return self._fetch(store, entry)
            raise
        part.replace(self._root / entry.sha256)
        self._evict(keep=entry.sha256)
        return data

    def _download(self, store: Store, entry: FileEntry, part: Path) -> None:
        """Fetch into `part` in chunks, going on where an earlier, interrupted download ended."""
        with part.open("ab") as file:
            while (start := file.tell()) < entry.size:
                chunk = store.read(entry.key, start, min(start + CHUNK, entry.size))
                if not chunk:
                    return  # shorter than committed: the check says so
                file.write(chunk)

    def _evict(self, keep: str) -> None:
        blobs = []
        for path in self._root.iterdir():
            with contextlib.suppress(OSError):
                if path.suffix != ".lock" and path.name != keep and path.is_file():
                    blobs.append((path.stat().st_mtime, path.stat().st_size, path))
        with contextlib.suppress(OSError):
            used = (self._root / keep).stat().st_size + sum(size for _, size, _ in blobs)
            for _, size, path in sorted(blobs):
                if used <= self._limit:
                    return
                path.unlink(missing_ok=True)
                used -= size
