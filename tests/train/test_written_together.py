"""A checkpoint that several workers write: what one of them meets, all are told; and its parts are read once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from shipline.checkpoint import Checkpoint, CheckpointManifest
from shipline.errors import IntegrityError, TrainingError
from shipline.shards import ShardIndex
from shipline.store import FileEntry, Publication, open_store
from shipline.store.entry import measure
from shipline.train.checkpoints.saver import commit
from shipline.train.checkpoints.shards import read_shards
from shipline.train.checkpoints.together import Together
from shipline.train.checkpoints.writer import Writer
from shipline.train.strategies import Strategy

WAIT_S = 20


class Meeting:
    """Where two threads meet, as workers do in a process group; who waits alone for too long fails."""

    def __init__(self) -> None:
        self.words: list[Any] = [None, None]
        self.barrier = threading.Barrier(2, timeout=WAIT_S)

    def gather(self, rank: int, word: Any) -> list[Any]:
        self.words[rank] = word
        self.barrier.wait()
        found = list(self.words)
        self.barrier.wait()
        return found


class Half(Strategy):
    """One of two workers that are threads."""

    world_size = 2

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self._meeting = rank, meeting

    def gather(self, value: Any) -> list[Any]:
        return self._meeting.gather(self.rank, value)


def write_together(root: str, files: list[dict[str, Any]], first: Callable[[], None] | None = None) -> list[str]:
    """Let two workers write their files; return what each was told, or "" where it was committed."""
    meeting = Meeting()

    def work(rank: int) -> str:
        writer = Writer(retry_for=0)
        before = [first] if first is not None and rank == 0 else []
        manifest = CheckpointManifest(module="Net", epoch=0, global_step=1)
        finish: Callable[[Publication], None] = lambda publication: commit(publication, manifest, False)  # noqa: E731
        Together(Half(rank, meeting), writer, open_store(root), before, finish, None).submit(files[rank])
        try:
            writer.close()
        except TrainingError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(work, range(2)))


def test_the_files_of_both_are_committed(tmp_path: Path) -> None:
    assert write_together(str(tmp_path), [{"a": b"1"}, {"b": b"2"}]) == ["", ""]
    found = Checkpoint.open(str(tmp_path), CheckpointManifest)
    assert (found.read("a"), found.read("b")) == (b"1", b"2")


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_cannot_write_all_are_told(tmp_path: Path, rank: int) -> None:
    """Whatever kind of error it is: here that of a file which is not there."""
    files: list[dict[str, Any]] = [{"a": b"1"}, {"b": b"2"}]
    files[rank]["lost"] = tmp_path / "lost"
    told = write_together(str(tmp_path / "checkpoint"), files)
    assert told[0] == told[1]
    assert told[0].startswith(f"Worker {rank} could not write its part of {tmp_path / 'checkpoint'}: FileNotFoundError")
    assert open_store(str(tmp_path / "checkpoint")).list() == []


def test_so_it_is_where_what_comes_before_the_commit_fails(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the tracking server is gone")

    told = write_together(str(tmp_path / "checkpoint"), [{"a": b"1"}, {"b": b"2"}], fail)
    assert told == [told[0]] * 2
    assert "RuntimeError: the tracking server is gone" in told[0]
    assert open_store(str(tmp_path / "checkpoint")).list() == []


class Read(Checkpoint):
    """Counts the files that are read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.names: list[str] = []

    def read(self, name: str) -> bytes:
        self.names.append(name)
        return super().read(name)


@pytest.fixture
def spread(tmp_path: Path) -> tuple[Read, ShardIndex, dict[str, torch.Tensor]]:
    """Three tensors, each half of them in one of two files."""
    store, whole = open_store(str(tmp_path)), {f"weight{n}": torch.arange(12.0).view(4, 3) + n for n in range(3)}
    entries: dict[str, FileEntry] = {}
    for number in range(2):
        rows = slice(2 * number, 2 * number + 2)
        data = safetensors.torch.save({f"{n}@{2 * number},0": t[rows].clone() for n, t in whole.items()})
        store.write(f"part{number}", data)
        entries[f"part{number}"] = FileEntry(key=f"part{number}", **measure(data))
    parts = [{"file": f"part{n}", "offsets": [2 * n, 0], "sizes": [2, 3]} for n in range(2)]
    index = {name: {"dtype": "F32", "shape": [4, 3], "parts": parts} for name in whole}
    manifest = CheckpointManifest(module="Net", epoch=0, global_step=1, files=entries)
    return Read(store, manifest), ShardIndex.parse(json.dumps(index).encode(), "index"), whole


def test_each_file_is_read_once(spread: tuple[Read, ShardIndex, dict[str, torch.Tensor]]) -> None:
    checkpoint, index, whole = spread
    targets = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    read_shards(checkpoint, index, targets)
    assert all(torch.equal(targets[name], tensor) for name, tensor in whole.items())
    assert sorted(checkpoint.names) == ["part0", "part1"]


def test_a_file_that_lacks_a_part_is_named(spread: tuple[Read, ShardIndex, dict[str, torch.Tensor]]) -> None:
    checkpoint, index, whole = spread
    swapped = {"part0": checkpoint.manifest.files["part1"], "part1": checkpoint.manifest.files["part0"]}
    other = Read(checkpoint.store, checkpoint.manifest.model_copy(update={"files": swapped}))
    with pytest.raises(IntegrityError, match=r"part0 is not what its index says: 'weight0@0,0'"):
        read_shards(other, index, {name: torch.zeros_like(tensor) for name, tensor in whole.items()})
