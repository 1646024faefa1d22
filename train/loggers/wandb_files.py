"""The files that W&B writes offline: `<directory>/wandb/offline-run-<time>-<id>/run-<id>.wandb`.

A file is a log of protocol buffers, in LevelDB's log format with a header of seven bytes; `wandb sync` sends it.
Format: https://github.com/google/leveldb/blob/main/doc/log_format.md; wandb-core's `leveldb` package is W&B's own.
"""

from __future__ import annotations

import logging
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shipline.store import Store

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0
HEADER = b":W&B"
_HEADER_BYTES = 7
_BLOCK = 32 * 1024
_RECORD = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _LAST = 1, 4


def keep_rows(store: Store, run_id: str, rows: int) -> None:
    """Cut the files of a run off after so many rows of its history, counted over all of them.

    Args:
        store: with the directory `wandb` in it.
        run_id: of the run.
        rows: those that a resumed run goes on after.
    """
    for key in offline_files(store, run_id):
        data = store.read(key)
        found = [end for end, record in records(data) if is_history(record)]
        if len(found) > rows:
            store.write(key, data[: found[rows - 1]] if rows else data[: _first_row(data)])
        rows -= min(len(found), rows)


def offline_files(store: Store, run_id: str) -> list[str]:
    """Return the keys of a run's files, in the order in which they were written."""
    named = re.compile(rf"offline-run-(\d+_\d+)-{re.escape(run_id)}(?:-(\d+))?")
    found = [match for name in store.list("wandb") if (match := named.fullmatch(name))]
    found.sort(key=lambda match: (match[1], int(match[2] or 0)))
    keys = [f"wandb/{match[0]}/run-{run_id}.wandb" for match in found]
    return [key for key in keys if store.exists(key)]


def records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each record of a file, and where it ends; what was not finished when a process died is left out."""
    if not data.startswith(HEADER):
        return
    at, parts = _HEADER_BYTES, b""
    while at + _RECORD.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _RECORD.size:  # the end of a block is padded
            at += left
            continue
        _, length, kind = _RECORD.unpack_from(data, at)
        end = at + _RECORD.size + length
        if not kind or end > len(data):
            return
        parts += data[at + _RECORD.size : end]
        at = end
        if kind in (_FULL, _LAST):
            yield end, parts
            parts = b""


def is_history(record: bytes) -> bool:
    """Whether the record is a row of metrics."""
    return _kind(record) == "history"


def wait_for_end(file: Path) -> None:
    """Wait until W&B's process has written what it was given: `finish` returns a little earlier."""
    until, size = time.monotonic() + PATIENCE_S, -1
    while time.monotonic() < until:
        data = file.read_bytes() if file.is_file() and file.stat().st_size != size else b""
        size = len(data) or size
        if any(_kind(record) == "exit" for _, record in records(data)):
            return
        time.sleep(0.002)
    logger.warning("%s is not complete: W&B has not ended it in %.0f s.", file, PATIENCE_S)


def _kind(record: bytes) -> str:
    from wandb.proto import wandb_internal_pb2

    parsed: Any = wandb_internal_pb2.Record.FromString(record)  # type: ignore[attr-defined]
    return str(parsed.WhichOneof("record_type"))


def _first_row(data: bytes) -> int:
    """Where the first row begins, about: the end of the record before it."""
    end = _HEADER_BYTES
    for after, record in records(data):
        if is_history(record):
            break
        end = after
    return end
