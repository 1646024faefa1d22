"""The commit protocol: all or nothing, one winner, every byte checked."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Literal

import pytest

from shipline.errors import ExistsError, IntegrityError, NotFoundError, SchemaError, StoreError
from shipline.store import Committed, Manifest, Publication, open_store
from shipline.store.commit import MANIFEST, discard, seal, unseal


class Note(Manifest):
    """A manifest for tests."""

    kind: Literal["note"] = "note"
    text: str = ""


class NoteDirectory(Committed[Note]):
    """A committed directory for tests."""


def publish(url: str, text: str, size: int = 100) -> Note:
    with Publication(open_store(url)) as publication:
        publication.add("a.bin", text.encode() * size)
        publication.add("sub/b.bin", b"b")
        return publication.commit(Note(text=text))


def read(url: str) -> tuple[str, bytes]:
    found = NoteDirectory.open(url, Note)
    return found.manifest.text, found.read("a.bin")


def test_what_was_committed_is_read_back(url: str) -> None:
    sealed = publish(url, "x")
    found = NoteDirectory.open(url, Note)
    assert found.manifest == sealed
    assert found.read("a.bin") == b"x" * 100
    assert found.read("sub/b.bin") == b"b"
    assert "a.bin" in found
    assert "c.bin" not in found


def test_nothing_is_there_before_the_commit(url: str) -> None:
    with Publication(open_store(url)) as publication:
        publication.add("a.bin", b"1")
        with pytest.raises(NotFoundError, match="nothing was committed there"):
            NoteDirectory.open(url, Note)
    assert open_store(url).list() == []


def test_an_error_in_the_body_leaves_nothing(url: str) -> None:
    def fail() -> None:
        with Publication(open_store(url)) as publication:
            publication.add("a.bin", b"1")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert open_store(url).list() == []


def test_of_two_writers_exactly_one_wins(url: str) -> None:
    """Both are half way when the first commits; the second changes nothing and cleans up."""
    with Publication(open_store(url)) as first, Publication(open_store(url)) as second:
        first.add("a.bin", b"first")
        second.add("a.bin", b"second")
        first.commit(Note(text="first"))
        with pytest.raises(ExistsError, match="committed already"):
            second.commit(Note(text="second"))
    assert read(url) == ("first", b"first")
    assert len([name for name in open_store(url).list() if name != MANIFEST]) == 1


def test_of_many_writers_at_once_exactly_one_wins(url: str) -> None:
    won: list[str] = []

    def write(text: str) -> None:
        try:
            publish(url, text)
        except (ExistsError, StoreError):
            return
        won.append(text)

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read(url) == (won[0], won[0].encode() * 100)


def test_a_commit_sweeps_what_was_left_unfinished(url: str) -> None:
    open_store(url).write("data-0123456789ab/a.bin", b"orphan")
    publish(url, "x")
    assert len(open_store(url).list()) == 2


def test_discard_leaves_nothing(url: str) -> None:
    publish(f"{url}/one", "x")
    discard(open_store(url), "one")
    assert open_store(url).list() == []


def test_every_flipped_byte_of_a_manifest_is_refused(tmp_path: Path) -> None:
    publish(str(tmp_path), "x")
    path = tmp_path / MANIFEST
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises((IntegrityError, SchemaError)):
            NoteDirectory.open(str(tmp_path), Note)
    path.write_bytes(good)
    assert read(str(tmp_path))[0] == "x"


def committed_file(url: str, name: str) -> Path:
    return Path(url) / NoteDirectory.open(url, Note).manifest.files[name].key


def test_a_flipped_byte_of_a_file_is_refused(tmp_path: Path) -> None:
    publish(str(tmp_path), "x")
    path = committed_file(str(tmp_path), "a.bin")
    for position in (0, 50, 99):
        data = bytearray(b"x" * 100)
        data[position] ^= 1
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"a\.bin is damaged: its sha256 is"):
            read(str(tmp_path))


@pytest.mark.parametrize("data", [b"", b"x" * 99, b"x" * 101])
def test_a_cut_or_longer_file_is_refused(tmp_path: Path, data: bytes) -> None:
    publish(str(tmp_path), "x")
    committed_file(str(tmp_path), "a.bin").write_bytes(data)
    with pytest.raises(IntegrityError, match=f"has {len(data)} bytes; its manifest says 100"):
        read(str(tmp_path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    publish(str(tmp_path), "x")
    committed_file(str(tmp_path), "a.bin").unlink()
    with pytest.raises(IntegrityError, match="is missing, though its manifest lists it"):
        read(str(tmp_path))


def test_an_unknown_file_is_refused(tmp_path: Path) -> None:
    publish(str(tmp_path), "x")
    with pytest.raises(IntegrityError, match=r"no file 'c\.bin'; it has a\.bin, sub/b\.bin"):
        NoteDirectory.open(str(tmp_path), Note).read("c.bin")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    publish(str(tmp_path), "x")
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 99'))
    with pytest.raises(SchemaError, match=r"schema version 99; this Shipline reads up to 1\. Upgrade"):
        NoteDirectory.open(str(tmp_path), Note)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b"\x80\x05pickle", b"[" * 100_000, b'{"digest": "' + b"0" * 64 + b'"}']
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(data)
    with pytest.raises(IntegrityError):
        NoteDirectory.open(str(tmp_path), Note)


def test_another_kind_of_manifest_is_refused() -> None:
    class Other(Manifest):
        kind: Literal["other"] = "other"

    _, data = seal(Other())
    with pytest.raises(IntegrityError, match="is no Note"):
        unseal(data, Note, "here")


def test_a_manifest_that_points_outside_is_refused(tmp_path: Path) -> None:
    publish(str(tmp_path / "dir"), "x")
    (tmp_path / "secret").write_bytes(b"x" * 100)
    note = NoteDirectory.open(str(tmp_path / "dir"), Note).manifest
    entry = note.files["a.bin"].model_copy(update={"key": "../secret"})
    _, data = seal(note.model_copy(update={"files": {"a.bin": entry}}))
    (tmp_path / "dir" / MANIFEST).write_bytes(data)
    with pytest.raises(ValueError, match="is no key"):
        NoteDirectory.open(str(tmp_path / "dir"), Note).read("a.bin")


def test_the_digest_is_that_of_the_content() -> None:
    one, data = seal(Note(text="a"))
    assert json.loads(data)["digest"] == one.digest
    assert seal(one)[1] == data
    assert seal(one.model_copy(update={"text": "b"}))[0].digest != one.digest
