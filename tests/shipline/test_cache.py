"""The local cache of remote files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shipline.errors import ConfigError, IntegrityError
from shipline.store import Cache, FileEntry, Store, cache as cache_module, open_store
from shipline.store.store import RemoteStore


class CountingStore(RemoteStore):
    """A store that remembers what was asked of it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reads: list[tuple[str, int | None]] = []

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        self.reads.append((key, start))
        return super().read(key, start, end)


def put(store: Store, key: str, data: bytes) -> FileEntry:
    store.write(key, data)
    return FileEntry(key=key, size=len(data), sha256=hashlib.sha256(data).hexdigest())


@pytest.fixture
def store(request: pytest.FixtureRequest) -> CountingStore:
    return CountingStore(f"memory://{request.node.name}")


def test_a_file_is_fetched_once(store: CountingStore, tmp_path: Path) -> None:
    entry, cache = put(store, "x", b"hello"), Cache(tmp_path)
    assert cache.read(store, entry) == b"hello"
    assert cache.read(store, entry) == b"hello"
    assert store.reads == [("x", 0)]


def test_a_damaged_copy_is_fetched_again(
    store: CountingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry, cache = put(store, "x", b"hello"), Cache(tmp_path)
    cache.read(store, entry)
    (tmp_path / entry.sha256).write_bytes(b"hellO")
    assert cache.read(store, entry) == b"hello"
    assert "was damaged on this disk" in caplog.text


def test_a_damaged_object_is_refused_and_not_kept(store: CountingStore, tmp_path: Path) -> None:
    entry = put(store, "x", b"hello")
    store.write("x", b"hellO")
    with pytest.raises(IntegrityError, match="damaged"):
        Cache(tmp_path).read(store, entry)
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".lock")] == []


def test_a_short_object_is_refused(store: CountingStore, tmp_path: Path) -> None:
    entry = put(store, "x", b"hello")
    store.write("x", b"he")
    with pytest.raises(IntegrityError, match="has 2 bytes; its manifest says 5"):
        Cache(tmp_path).read(store, entry)


def test_an_interrupted_download_goes_on(store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "CHUNK", 4)
    entry = put(store, "x", b"0123456789")
    (tmp_path / f"{entry.sha256}.part").write_bytes(b"01234")
    assert Cache(tmp_path).read(store, entry) == b"0123456789"
    assert store.reads == [("x", 5), ("x", 9)]


def test_a_wrong_beginning_is_fetched_anew(store: CountingStore, tmp_path: Path) -> None:
    entry = put(store, "x", b"0123456789")
    (tmp_path / f"{entry.sha256}.part").write_bytes(b"wrong")
    assert Cache(tmp_path).read(store, entry) == b"0123456789"


def test_the_least_recently_used_go_first(store: CountingStore, tmp_path: Path) -> None:
    """Files alone: other parts have directories of their own there."""
    cache = Cache(tmp_path, limit=25)
    (tmp_path / "points").mkdir()
    os.utime(tmp_path / "points", (0, 0))
    entries = [put(store, str(i), bytes([i]) * 10) for i in range(3)]
    for age, entry in zip((30, 10), entries[:2], strict=True):
        cache.read(store, entry)
        then = (tmp_path / entry.sha256).stat().st_mtime - age
        os.utime(tmp_path / entry.sha256, (then, then))
    cache.read(store, entries[2])
    assert {name for name in os.listdir(tmp_path) if not name.endswith(".lock")} == {
        "points",
        *(e.sha256 for e in entries[1:]),
    }


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    store: CountingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    entry = put(store, "x", b"hello")
    with caplog.at_level(logging.WARNING):
        assert Cache(tmp_path / "file" / "below").read(store, entry) == b"hello"
    assert "cannot be used" in caplog.text


def test_threads_share_one_download(store: CountingStore, tmp_path: Path) -> None:
    entry = put(store, "x", b"hello" * 1000)
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(Cache(tmp_path).read(store, entry))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [b"hello" * 1000] * 8
    assert len(store.reads) == 1


def test_processes_share_it(s3: str, tmp_path: Path) -> None:
    """Six processes that start at once all get the right bytes; one copy is left."""
    data = os.urandom(5_000_000)
    entry = put(open_store(s3), "big", data)
    program = (
        "import sys, json, hashlib; from pathlib import Path; from shipline.store import Cache, FileEntry, open_store;"
        "entry = FileEntry(**json.loads(sys.argv[2]));"
        "print(hashlib.sha256(Cache(Path(sys.argv[3])).read(open_store(sys.argv[1]), entry)).hexdigest())"
    )
    command = [sys.executable, "-c", program, s3, json.dumps(entry.model_dump()), str(tmp_path / "shared")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [entry.sha256] * 6
    assert [name for name in os.listdir(tmp_path / "shared") if not name.endswith(".lock")] == [entry.sha256]


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SHIPLINE_CACHE_DIR", str(tmp_path / "here"))
    store = open_store(f"memory://{tmp_path.name}-env")
    entry = put(store, "x", b"1")
    Cache.default().read(store, entry)
    assert (tmp_path / "here" / entry.sha256).read_bytes() == b"1"
    monkeypatch.setenv("SHIPLINE_CACHE_BYTES", "lots")
    with pytest.raises(ConfigError, match="SHIPLINE_CACHE_BYTES is 'lots'; set a number of bytes"):
        Cache.default()
