"""What every store must do."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shipline.errors import ConfigError, ExistsError, NotFoundError
from shipline.store import Store, open_store


class StoreConformance:
    """Inherit, and give a fixture `store`: an empty store."""

    def test_reads_what_was_written(self, store: Store) -> None:
        store.write("a/b.txt", b"hello")
        assert store.read("a/b.txt") == b"hello"
        assert store.size("a/b.txt") == 5
        assert store.read("a/b.txt", 1, 3) == b"el"

    def test_write_replaces(self, store: Store) -> None:
        store.write("x", b"old and long")
        store.write("x", b"new")
        assert store.read("x") == b"new"

    def test_writes_from_a_file(self, store: Store, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(b"x" * 3_000_000)
        store.write("big", source)
        assert store.size("big") == 3_000_000

    def test_creates_once(self, store: Store) -> None:
        store.create("d/manifest.json", b"first")
        with pytest.raises(ExistsError, match="exists already"):
            store.create("d/manifest.json", b"second")
        assert store.read("d/manifest.json") == b"first"

    def test_of_many_creators_one_wins(self, store: Store) -> None:
        won: list[int] = []

        def create(number: int) -> None:
            try:
                store.create("one", str(number).encode())
            except ExistsError:
                return
            won.append(number)

        threads = [threading.Thread(target=create, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert store.read("one") == str(won[0]).encode()

    def test_nothing_there(self, store: Store) -> None:
        with pytest.raises(NotFoundError, match=r"nothing/here.*nothing is there"):
            store.read("nothing/here")
        with pytest.raises(NotFoundError):
            store.size("nothing")
        assert not store.exists("nothing")
        assert store.list() == []
        assert store.list("nothing") == []
        store.remove("nothing")

    def test_nothing_is_below_a_file(self, store: Store) -> None:
        store.write("file", b"x")
        with pytest.raises(NotFoundError, match=r"file/below.*nothing is there"):
            store.read("file/below")
        with pytest.raises(NotFoundError):
            store.size("file/below")
        assert not store.exists("file/below")
        assert store.list("file/below") == []

    def test_lists_directly_below(self, store: Store) -> None:
        for key in ("a/1", "a/b/2", "c"):
            store.write(key, b"")
        assert store.list() == ["a", "c"]
        assert store.list("a") == ["1", "b"]
        assert store.at("a").list() == ["1", "b"]

    def test_lists_more_than_a_page(self, store: Store) -> None:
        for number in range(1005):
            store.write(f"many/{number}", b"")
        assert len(store.list("many")) == 1005

    def test_another_store_sees_a_write_at_once(self, store: Store) -> None:
        other = open_store(store.url)
        assert other.list() == []
        store.write("late", b"1")
        assert other.list() == ["late"]
        assert other.read("late") == b"1"

    def test_removes_files_and_directories(self, store: Store) -> None:
        store.write("d/e/f", b"1")
        store.write("g", b"1")
        store.remove("d")
        store.remove("g")
        assert store.list() == []

    @pytest.mark.parametrize(
        "key", ["../x", "/etc/passwd", "a/../b", "a//b", "", ".", "a\\b", "a\0b", "a/./b", "~", "a b"]
    )
    def test_refuses_keys_that_leave_it(self, store: Store, key: str) -> None:
        for action in (store.read, store.size, store.remove, store.at):
            with pytest.raises(ConfigError, match="is no key"):
                action(key)
        with pytest.raises(ConfigError, match="is no key"):
            store.write(key, b"1")
