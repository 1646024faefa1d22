"""A store in memory that is full, away, forbidden or slow when a test says so: a file system as fsspec knows them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FaultyFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Asks `fault` before each operation, with its name and path; what that raises is what happens."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fault: ClassVar[Callable[[str, str], None]] = staticmethod(lambda _operation, _path: None)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("faulty://", "memory://"))  # type: ignore[no-any-return]

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **options: Any) -> None:
        """Write a file whole, or, of one that fails on the way, nothing."""
        type(self).fault("write", path)
        super().pipe_file(path, value, mode=mode, **options)

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        """Read a file."""
        type(self).fault("read", path)
        return super().cat_file(path, start, end, **options)

    def info(self, path: str, **options: Any) -> Any:
        """Look at a file."""
        type(self).fault("look", path)
        return super().info(path, **options)

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        """List a directory."""
        type(self).fault("list", path)
        return super().ls(path, detail, **options)


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


def full(operation: str, path: str) -> None:
    """Nothing more can be written; all that is there can be read."""
    if operation == "write":
        raise OSError(errno.ENOSPC, "No space left on device", path)


def away(_operation: str, _path: str) -> None:
    """Nobody answers."""
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")


def forbidden(operation: str, path: str) -> None:
    """The rights to write have expired."""
    if operation == "write":
        raise PermissionError(errno.EACCES, "The provided token has expired", path)


class Stuck:
    """Writes below a path wait until they are let go."""

    def __init__(self, below: str) -> None:
        self._below = below
        self.waiting = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, operation: str, path: str) -> None:
        if operation == "write" and self._below in path:
            self.waiting.set()
            assert self.go_on.wait(60)
