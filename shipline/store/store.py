"""Files below a URL: a few operations, each of which happens whole or not at all.

`fs.open(url, "wb")` of fsspec publishes a half-written object when the body raises (measured on s3fs 2026.9), so
nothing here writes through an open file that readers can see.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import fsspec

from shipline.errors import AccessDeniedError, ConfigError, ExistsError, NotFoundError, StoreError
from shipline.plugins import missing_extra
from shipline.store.urls import check_key, join, redact

Data = bytes | memoryview | Path

ABANDONED_S = 3600.0
PART_BYTES = 5 << 20  # the protocol's least
MOST_PARTS = 9000  # of 10,000
MOST_AT_ONCE = 10  # parts on their way
SHARE_AT_ONCE = 0.05  # of the object, which is what they may take together: the client holds each part twice


class Store(ABC):
    """The files below one URL. Keys are relative paths of plain names; see `check_key`."""

    def __init__(self, url: str) -> None:
        self._url = url if url.endswith("://") else url.rstrip("/")

    @property
    def url(self) -> str:
        """The URL as the user gave it; may hold credentials, so show `str(store)` instead."""
        return self._url

    def __str__(self) -> str:
        return redact(self._url)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def at(self, key: str) -> Store:
        """Return the store of the directory `key` below this one."""
        return type(self)(join(self._url, check_key(key)))

    @abstractmethod
    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return the file's bytes, or those of the range; NotFoundError where there is none."""

    @abstractmethod
    def write(self, key: str, data: Data) -> None:
        """Write or replace the file; readers see the old one or the new one."""

    @abstractmethod
    def create(self, key: str, data: Data) -> None:
        """Write the file unless one is there; of several writers exactly one succeeds, the others get ExistsError."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Return the file's size in bytes; NotFoundError where there is none."""

    @abstractmethod
    def list(self, key: str = "") -> list[str]:
        """Return the names of files and directories directly below `key`, sorted; [] where there is nothing."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Delete the file or the directory; nothing happens where there is none."""

    def exists(self, key: str) -> bool:
        """Return whether the file is there."""
        try:
            self.size(key)
        except NotFoundError:
            return False
        return True


def open_store(url: str | os.PathLike[str] | Store) -> Store:
    """Return the store for a local path or any URL that fsspec understands.

    Raises:
        ConfigError: the URL's protocol is unknown.
        MissingExtraError: its file system is not installed.
    """
    if isinstance(url, Store):
        return url
    text = os.fspath(url)
    if not text:
        raise ConfigError("The URL is empty: give a path or a URL such as s3://bucket/models.")
    if "://" not in text:
        return LocalStore(text)
    if text.startswith("file://"):
        return LocalStore(text.removeprefix("file://"))
    return RemoteStore(text)


class LocalStore(Store):
    """A directory of this machine."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.root = Path(url)

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        with _explained(self, "read", key), _opened(self._path(key)) as file:
            if start:
                file.seek(start)
            return file.read() if end is None else file.read(end - (start or 0))

    def write(self, key: str, data: Data) -> None:
        path = self._path(key)
        with _explained(self, "write", key), self._staged(path, data) as staged:
            staged.replace(path)
            _sync(path.parent)

    def create(self, key: str, data: Data) -> None:
        path = self._path(key)
        with _explained(self, "create", key), self._staged(path, data) as staged:
            # A hard link, unlike a rename, refuses to replace what is there, and appears with its whole content.
            os.link(staged, path)
            _sync(path.parent)

    def size(self, key: str) -> int:
        with _explained(self, "read", key):
            path = self._path(key)
            if not path.is_file():
                raise FileNotFoundError(path)
            return path.stat().st_size

    def list(self, key: str = "") -> list[str]:
        with _explained(self, "list", key):
            path = self._path(key) if key else self.root
            return sorted(p.name for p in path.iterdir() if not _staging(p.name)) if path.is_dir() else []

    def remove(self, key: str) -> None:
        with _explained(self, "delete", key):
            path = self._path(key)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextlib.contextmanager
    def _staged(self, path: Path, data: Data) -> Iterator[Path]:
        """A synced file beside the target that no reader lists; gone at the end."""
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        try:
            with staged.open("xb") as file:
                if isinstance(data, bytes | memoryview):
                    file.write(data)
                else:
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                os.fsync(file.fileno())
            yield staged
        finally:
            staged.unlink(missing_ok=True)


def _opened(path: Path) -> BinaryIO:
    try:
        kind = path.stat().st_mode
    except NotADirectoryError as error:  # below a file there is nothing, here as on object stores
        raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
    if stat.S_ISCHR(kind):  # who reads it would read for ever
        raise OSError("it is a device, and no file")
    return path.open("rb")


class RemoteStore(Store):
    """A directory of an object store, or of any other fsspec file system."""

    # fsspec's memory file system looks before it creates, in two steps; object stores do it in one.
    _creating = threading.Lock()

    def __init__(self, url: str) -> None:
        super().__init__(url)
        try:
            # Listings are never cached: another process may have written since.
            options = {} if url.startswith("memory:") else {"use_listings_cache": False}
            self._fs, root = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
            raise (missing_extra(cause) if isinstance(cause, ModuleNotFoundError) else error) from error
        except ValueError as error:
            raise ConfigError(f"{redact(url)!r} cannot be opened: {redact(str(error))}.") from error
        self._root = root.rstrip("/")

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        with _explained(self, "read", key):
            return bytes(self._fs.cat_file(self._path(key), start=start, end=end))

    def write(self, key: str, data: Data) -> None:
        with _explained(self, "write", key):
            path = self._path(key)
            if isinstance(data, bytes | memoryview):
                self._pipe(path, data)
                size = len(data)
            else:
                self._fs.put_file(str(data), path)
                size = data.stat().st_size
            if (found := self._fs.info(path)["size"]) != size:
                raise StoreError(
                    f"{self}/{key} has {found} bytes after writing {size}: the store lost some. Try again."
                )

    def create(self, key: str, data: Data) -> None:
        content = data.read_bytes() if isinstance(data, Path) else bytes(data)
        with _explained(self, "create", key), self._creating:
            self._fs.pipe_file(self._path(key), content, mode="create")

    def size(self, key: str) -> int:
        with _explained(self, "read", key):
            info = self._fs.info(self._path(key))
            if info["type"] != "file":
                raise FileNotFoundError(key)
            return int(info["size"])

    def list(self, key: str = "") -> list[str]:
        with _explained(self, "list", key):
            try:
                found = self._fs.ls(self._path(key) if key else self._root, detail=False)
            except (FileNotFoundError, NotADirectoryError) as error:
                if _no_bucket(error):
                    raise
                return []
            return sorted({path.rstrip("/").rpartition("/")[2] for path in found})

    def remove(self, key: str) -> None:
        with _explained(self, "delete", key), contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(key), recursive=True)

    def _pipe(self, path: str, data: bytes | memoryview) -> None:
        """Large objects go to S3 in parts; of a view only those parts are copied that are on their way."""
        if isinstance(data, bytes):
            self._fs.pipe_file(path, data)
        elif len(data) >= 2 * PART_BYTES and "s3" in self._fs.protocol:
            part = max(PART_BYTES, len(data) // MOST_PARTS)
            at_once = min(MOST_AT_ONCE, max(2, int(SHARE_AT_ONCE * len(data) / (2 * part))))
            self._fs.pipe_file(path, _Parts(data), chunksize=part, max_concurrency=at_once)
        else:
            self._fs.pipe_file(path, bytes(data))

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"


class _Parts:
    """Bytes that are copied part by part: clients of S3 refuse a view, and would hold a copy of the whole."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._data[part])


def _staging(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")


def _sweep(path: Path) -> None:
    """Remove what writers of this file, killed long ago, staged for it."""
    for staged in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - staged.stat().st_mtime > ABANDONED_S:
                staged.unlink()


def _sync(directory: Path) -> None:
    """Make a rename or a link in this directory survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _explained(store: Store, action: str, key: str) -> Iterator[None]:
    """Turn what a file system raises into one of our errors, with the URL and without its credentials."""
    where = f"{store}/{key}" if key else str(store)
    try:
        yield
    except FileNotFoundError as error:
        if _no_bucket(error):
            raise NotFoundError(
                f"Cannot {action} {where}: the bucket does not exist. Create it or correct the URL."
            ) from error
        raise NotFoundError(f"Cannot {action} {where}: nothing is there. Check the URL.") from error
    except FileExistsError as error:
        raise ExistsError(f"{where} exists already, and what is committed never changes.") from error
    except PermissionError as error:
        raise AccessDeniedError(
            f"Cannot {action} {where}: access denied ({_reason(error, store)}). Check the credentials and their rights."
        ) from error
    except OSError as error:
        raise StoreError(f"Cannot {action} {where}: {_reason(error, store)}.") from error
    except Exception as error:
        # The clients of object stores raise types of their own for an unreachable end point or missing credentials.
        if type(error).__module__.partition(".")[0] not in (
            "botocore",
            "aiobotocore",
            "gcsfs",
            "google",
            "azure",
            "aiohttp",
        ):
            raise
        raise StoreError(
            f"Cannot {action} {where}: {_reason(error, store)}. Check the network, the end point and the credentials."
        ) from error


def _no_bucket(error: OSError) -> bool:
    """Object stores say of a missing bucket what they say of a missing object, in other words."""
    return "bucket" in str(error).lower() and "not exist" in str(error).lower()


def _reason(error: Exception, store: Store) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(redact(text, store.url).split()).rstrip(".") or type(error).__name__
