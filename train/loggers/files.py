"""A directory of this machine for a library that can write only such, and the store that is to have its files."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from shipline.errors import StoreError
from shipline.store import Store

_ODD = re.compile(r"[^A-Za-z0-9._=,+@-]")


class LibraryFiles:
    """Where the store is a directory of this machine, that directory; else one for the time being, which is uploaded.

    Args:
        store: that is to have the files.
        fetch: begin with the files that are there.
    """

    def __init__(self, store: Store, *, fetch: bool = False) -> None:
        self.store = store
        self._uploading = threading.Lock()
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        root = getattr(store, "root", None)
        if root is not None:
            self.path = Path(root).absolute()
            self.path.mkdir(parents=True, exist_ok=True)
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="shipline-logger-")
        self.path = Path(self._temporary.name)
        for key in stored_files(store) if fetch else ():
            target = self.path / key
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(store.read(key))
            self._uploaded[key] = _state(target)

    @property
    def is_temporary(self) -> bool:
        """Whether the files are uploaded."""
        return self._temporary is not None

    def upload(self) -> None:
        """Bring what has changed to the store.

        Raises:
            StoreError: it does not take it; called again, this goes on where it failed.
        """
        if self._temporary is None:
            return
        with self._uploading:
            gone = set(self._uploaded)
            for name, path in self._own_files():
                gone.discard(name)
                try:
                    state = _state(path)
                    data = path.read_bytes() if self._uploaded.get(name) != state else None
                except FileNotFoundError:  # the library has just removed it
                    continue
                if data is not None:  # read whole: it may grow while it is sent
                    self.store.write(_key(name), data)
                    self._uploaded[name] = state
            for name in gone:
                self.store.remove(_key(name))
                del self._uploaded[name]

    def close(self) -> None:
        """Bring everything to the store, and remove the directory that was for the time being.

        Raises:
            StoreError: it does not take it; the message says where the files are kept.
        """
        if self._temporary is None:
            return
        try:
            self.upload()
        except StoreError as error:
            kept = self.path.rename(f"{self.path}-kept")
            raise type(error)(f"{error} What the logger wrote is kept in {kept}: copy it there yourself.") from error
        finally:
            self._temporary.cleanup()

    def _own_files(self) -> Iterator[tuple[str, Path]]:
        for directory, _, names in os.walk(self.path):
            for name in sorted(names):
                path = Path(directory, name)
                if not path.is_symlink() and path.is_file():
                    yield path.relative_to(self.path).as_posix(), path


def stored_files(store: Store, key: str = "") -> Iterator[str]:
    """Yield the keys of all files below `key`, however deep."""
    for name in store.list(key):
        below = f"{key}/{name}" if key else name
        if store.exists(below):
            yield below
        else:
            yield from stored_files(store, below)


def _key(name: str) -> str:
    """The file's name as a store takes it."""
    return "/".join(_ODD.sub("_", part) for part in name.split("/"))


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
