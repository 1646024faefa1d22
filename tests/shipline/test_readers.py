"""A checkpoint that somebody reads is not deleted, whoever else thinks that it has had its day."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shipline.checkpoint import WEIGHTS, Checkpoint, CheckpointManifest, open_checkpoint
from shipline.errors import AccessDeniedError, NotFoundError
from shipline.store import Publication, Store, open_store, readers
from shipline.store.commit import MANIFEST, discard


def committed(url: str, name: str = "one", content: bytes = b"weights") -> Checkpoint:
    with Publication(open_store(url).at(name)) as publication:
        publication.add(WEIGHTS, content)
        publication.commit(CheckpointManifest(module="Net", epoch=0, global_step=1), replace=True)
    return open_checkpoint(f"{url}/{name}")


def test_it_stays_until_the_reader_has_ended(url: str) -> None:
    checkpoint, store = committed(url), open_store(url)
    with checkpoint.kept():
        assert not discard(store, "one")
        assert checkpoint.read(WEIGHTS) == b"weights"
        assert open_checkpoint(f"{url}/one").read(WEIGHTS) == b"weights"
    assert sorted(store.at("one").list()) == sorted([MANIFEST, checkpoint.manifest.files[WEIGHTS].key.split("/")[0]])
    assert discard(store, "one")
    assert store.list("one") == []


def test_readers_within_each_other_are_one(url: str) -> None:
    checkpoint, store = committed(url), open_store(url)
    with checkpoint.kept():
        with checkpoint.kept():
            assert len([name for name in store.list("one") if name.startswith("reader-")]) == 1
        assert not discard(store, "one")
    assert discard(store, "one")


def test_a_dead_reader_is_forgotten(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was killed leaves its file."""
    committed(url)
    store, now = open_store(url), 1000.0
    monkeypatch.setattr(readers.time, "time", lambda: now)
    assert readers._count(store.at("one"), "reader-dead")
    now += readers.COUNTS_S - 1
    assert not discard(store, "one")
    now += 2
    assert discard(store, "one")
    assert store.list("one") == []


def test_one_that_reads_for_long_says_so_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "AGAIN_S", 0.01)
    checkpoint, store = committed(url), open_store(url)
    with checkpoint.kept():
        [name] = [name for name in store.list("one") if name.startswith("reader-")]
        first = json.loads(store.read(f"one/{name}"))["until"]
        while json.loads(store.read(f"one/{name}"))["until"] == first:
            pass
    assert [name for name in store.list("one") if name.startswith("reader-")] == []


class Between(Store):
    """A store on which something happens just before the manifest is read, or deleted."""

    def __init__(self, store: Store, act: Any, before: str = "remove") -> None:
        super().__init__(store.url)
        self._store, self._act, self._before = store, act, before

    def at(self, key: str) -> Store:
        return Between(self._store.at(key), self._act, self._before)

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        if (self._before, key) == ("read", MANIFEST):
            self._act()
        return self._store.read(key, start, end)

    def write(self, key: str, data: Any) -> None:
        self._store.write(key, data)

    def create(self, key: str, data: Any) -> None:
        self._store.create(key, data)

    def size(self, key: str) -> int:
        return self._store.size(key)

    def list(self, key: str = "") -> list[str]:
        return self._store.list(key)

    def remove(self, key: str) -> None:
        if (self._before, key) == ("remove", MANIFEST):
            self._act()
        self._store.remove(key)


def test_a_reader_that_comes_between_keeps_it(url: str) -> None:
    """After the first look for readers, and before the manifest is gone."""
    checkpoint = committed(url)
    reader = checkpoint.kept()
    assert not discard(Between(open_store(url), reader.__enter__), "one")
    assert open_checkpoint(f"{url}/one").read(WEIGHTS) == b"weights"
    reader.__exit__(None, None, None)
    assert discard(open_store(url), "one")


def test_a_reader_that_comes_after_hears_that_it_is_gone(url: str) -> None:
    checkpoint = committed(url)
    assert discard(open_store(url), "one")
    with pytest.raises(NotFoundError, match="one was deleted a moment ago: read a newer one"):
        checkpoint.weights(lambda data: {"whole": data})
    assert open_store(url).list("one") == []


def test_a_reader_that_opened_what_was_replaced_hears_so(url: str) -> None:
    old = committed(url)
    committed(url, content=b"others")
    with pytest.raises(NotFoundError, match="one was replaced after it was opened: open it again"), old.kept():
        pass
    assert [name for name in open_store(url).list("one") if name.startswith("reader-")] == []


def test_of_two_who_delete_neither_takes_it_from_a_reader(url: str) -> None:
    """The other has taken the manifest away after the reader came, and puts it back when it sees it."""
    checkpoint, store = committed(url), open_store(url)
    reader, taken = checkpoint.kept(), store.read(f"one/{MANIFEST}")

    def other() -> None:
        reader.__enter__()
        store.remove(f"one/{MANIFEST}")

    assert not discard(Between(store, other, before="read"), "one")
    store.write(f"one/{MANIFEST}", taken)
    assert open_checkpoint(f"{url}/one").read(WEIGHTS) == b"weights"
    reader.__exit__(None, None, None)
    assert discard(store, "one")


def test_what_is_replaced_while_it_is_read_stays(url: str) -> None:
    """Until the next commit."""
    old = committed(url)
    with old.kept():
        new = committed(url, content=b"others")
        assert old.read(WEIGHTS) == b"weights"
    assert new.read(WEIGHTS) == b"others"
    committed(url, content=b"last")
    assert len([name for name in open_store(url).list("one") if name.startswith("data-")]) == 1


def test_where_one_may_only_read_one_reads(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, store = committed(url), open_store(url)

    def refuse(_store: Store, key: str, _data: Any) -> None:
        raise AccessDeniedError(f"Cannot write {key}: access denied.")

    monkeypatch.setattr(type(store), "write", refuse)
    assert checkpoint.weights(lambda data: {"whole": data}) == {"whole": b"weights"}
    assert [name for name in store.list("one") if name.startswith("reader-")] == []


def test_a_file_that_is_no_readers_keeps_nothing(url: str) -> None:
    committed(url)
    store = open_store(url)
    for number, content in enumerate((b"", b"[]", b'{"until": "for ever"}')):
        store.write(f"one/reader-{number}", content)
    assert discard(store, "one")
