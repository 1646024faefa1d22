"""Files of many rows, read from a store piece by piece."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from shipline.errors import ConfigError, MissingExtraError
from shipline.store import Store

Row = dict[str, Any]

_AHEAD = 4 << 20  # bytes that are fetched at once


class StoreFile(io.RawIOBase):
    """A file on a store that can be read anywhere; only what is read is fetched."""

    def __init__(self, store: Store, key: str) -> None:
        super().__init__()
        self._store, self._key, self._size, self._at = store, key, store.size(key), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._store.read(self._key, self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def opened(store: Store, key: str) -> io.BufferedReader:
    """Return a file of a store, to be read."""
    return io.BufferedReader(StoreFile(store, key), _AHEAD)


def tar_rows(store: Store, key: str) -> Iterator[Row]:
    """Return the rows of an archive: files whose names differ only after the first dot make one (WebDataset).

    https://github.com/webdataset/webdataset#the-webdataset-format

    Raises:
        ConfigError: it is damaged, or no archive.
    """
    row: Row = {}
    try:
        with opened(store, key) as file, tarfile.open(fileobj=file, mode="r:*") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                directory, slash, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                whole = f"{directory}{slash}{stem}"
                if row and row["__key__"] != whole:
                    yield row
                    row = {}
                content = archive.extractfile(member)
                assert content is not None  # of a file it is not
                row = {"__key__": whole, **row, ending: content.read()}
                archive.members = []  # type: ignore[attr-defined] # or it remembers all of them
    # What is compressed has errors of its own: of its header (an OSError), of its bytes, of its end.
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise _damaged(store, key, "tar archive", error) from error
    if row:
        yield row


def parquet_rows(store: Store, key: str) -> Iterator[Row]:
    """Return the rows of a Parquet file, by column.

    Raises:
        ConfigError: it is damaged, or no Parquet file.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("Parquet files need pyarrow. Run: pip install 'shipline[parquet]'") from error
    try:
        with opened(store, key) as file:
            for batch in parquet.ParquetFile(file).iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:  # of its bytes Arrow says the latter
        raise _damaged(store, key, "Parquet file", error) from error


def _damaged(store: Store, key: str, what: str, error: Exception) -> ConfigError:
    """What is raised of a file that cannot be read; what the store says of itself is none of it."""
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return ConfigError(
        f"{store}/{key} is damaged, or no {what}: {said}. Write it again, or take it out of the directory."
    )


def picture_rows(store: Store, key: str) -> Iterator[Row]:
    """Return the one row of a picture: its bytes, by ending."""
    stem, _, ending = key.rpartition(".")
    yield {"__key__": stem, ending: store.read(key)}


_READERS: dict[str, Callable[[Store, str], Iterator[Row]]] = {
    **dict.fromkeys((".tar", ".tar.gz", ".tgz"), tar_rows),
    ".parquet": parquet_rows,
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp"), picture_rows),
}
#: What names of files of rows end in.
FORMATS = tuple(_READERS)


def reader(key: str) -> Callable[[Store, str], Iterator[Row]]:
    """Return what reads a file of this name."""
    return next(read for ending, read in _READERS.items() if key.endswith(ending))
