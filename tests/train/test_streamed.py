"""Rows streamed from files on a store: each once an epoch, whoever reads, and on from the very row."""

from __future__ import annotations

import gzip
import io
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from sklearn import datasets
from torch.utils.data import DataLoader
from training import Mlp, new_trainer, same_weights

import shipline as sl
from shipline.errors import ConfigError, NotFoundError, StoreError
from shipline.store import open_store
from shipline.train import StreamedRows
from shipline.train.data.fingerprint import fingerprint
from shipline.train.data.sharding import shard

load_digits = cache(datasets.load_digits)
ROWS, EACH = 53, 20  # in files of so many: the last has thirteen


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray((load_digits().images[number] * 15).astype(np.uint8)).save(stream, "png")
    return stream.getvalue()


def archive(numbers: range) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        directory = tarfile.TarInfo("train")
        directory.type = tarfile.DIRTYPE
        file.addfile(directory)
        for number in numbers:
            for ending, content in (("png", png(number)), ("cls", str(load_digits().target[number]).encode())):
                member = tarfile.TarInfo(f"train/{number:04d}.{ending}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def table(numbers: range) -> bytes:
    stream = io.BytesIO()
    pixels, digits = load_digits().data, load_digits().target
    rows = [{"pixels": pixels[number].tolist(), "digit": int(digits[number])} for number in numbers]
    parquet.write_table(pyarrow.Table.from_pylist(rows), stream, row_group_size=7)
    return stream.getvalue()


@pytest.fixture(scope="module", params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same digits as archives, as tables and as pictures."""
    root = "memory://streamed" if request.param == "memory" else str(tmp_path_factory.mktemp("streamed"))
    store = open_store(root)
    for start in range(0, ROWS, EACH):
        numbers = range(start, min(start + EACH, ROWS))
        store.write(f"tars/{start:03d}.tar", archive(numbers))
        store.write(f"tables/{start:03d}.parquet", table(numbers))
    for number in range(7):
        store.write(f"pictures/{load_digits().target[number]}/{number}.png", png(number))
    store.write("pictures/README.md", b"no picture")
    return root


def key(row: dict[str, Any]) -> int:
    return int(row["__key__"].rpartition("/")[2])


def test_rows_of_archives(url: str) -> None:
    rows = list(StreamedRows(f"{url}/tars"))
    assert [key(row) for row in rows] == list(range(ROWS))
    assert rows[30] == {"__key__": "train/0030", "png": png(30), "cls": str(load_digits().target[30]).encode()}
    assert [key(row) for row in StreamedRows(f"{url}/tars/040.tar")] == list(range(40, ROWS))


def test_rows_of_tables(url: str) -> None:
    rows = list(StreamedRows(f"{url}/tables"))
    assert [row["digit"] for row in rows] == load_digits().target[:ROWS].tolist()
    assert rows[52]["pixels"] == load_digits().data[52].tolist()


def test_rows_of_pictures_in_directories(url: str) -> None:
    rows = list(StreamedRows(f"{url}/pictures"))
    assert {row["__key__"] for row in rows} == {f"{load_digits().target[number]}/{number}" for number in range(7)}
    assert all(row["png"] == png(key(row)) for row in rows)


@pytest.mark.parametrize("shuffle", [0, 8])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_share_the_rows_equally(url: str, workers: int, shuffle: int) -> None:
    """And one order: those that are given twice, for want of a last one, are the first."""
    whole = [key(row) for row in StreamedRows(f"{url}/tars", shuffle=shuffle)]
    shares = [list(StreamedRows(f"{url}/tars", key, shuffle=shuffle).sharded(rank, workers)) for rank in range(workers)]
    turns = [row for group in zip(*shares, strict=True) for row in group]
    assert turns == whole + whole[: -ROWS % workers]
    assert sorted(whole) == list(range(ROWS))


def test_each_epoch_has_an_order_of_its_own(url: str) -> None:
    streamed = StreamedRows(f"{url}/tars", key, shuffle=8, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        streamed.set_epoch(epoch)
        orders.append(list(streamed))
    assert orders[0] != orders[1]
    assert orders[0] == orders[2]
    assert orders[0] != list(range(ROWS))


@pytest.mark.parametrize("shuffle", [0, 8])
@pytest.mark.parametrize("done", [0, 1, 9, 26])
def test_others_go_on_at_the_very_row(url: str, done: int, shuffle: int) -> None:
    """Two workers have given some; three give the rest."""
    whole = [key(row) for row in StreamedRows(f"{url}/tars", shuffle=shuffle)]
    before = StreamedRows(f"{url}/tars", key, shuffle=shuffle).sharded(0, 2)
    rows = iter(before)
    for _ in range(done):
        next(rows)
    rest = []
    for rank in range(3):
        after = StreamedRows(f"{url}/tars", key, shuffle=shuffle).sharded(rank, 3)
        after.load_state_dict(before.state_dict())
        rest.append(list(after))
    turns = [row for group in zip(*rest, strict=True) for row in group]
    left = whole[2 * done :]
    assert turns[: len(left)] == left
    assert len(turns) - len(left) == -len(left) % 3


def test_processes_of_a_loader_share_them_too(url: str) -> None:
    loader = DataLoader(StreamedRows(f"{url}/tables", digit), 4, num_workers=2)
    assert sorted(torch.cat(list(loader)).tolist()) == sorted([*load_digits().target[:ROWS], load_digits().target[0]])


def digit(row: dict[str, Any]) -> int:
    return int(row["digit"])


def sample(row: dict[str, Any]) -> Any:
    return torch.tensor(row["pixels"], dtype=torch.float32) / 16, row["digit"]


def test_a_run_that_is_resumed_is_the_whole_one(url: str, tmp_path: Path) -> None:
    def fit(steps: int, resume: str | None = None) -> Mlp:
        sl.seed_everything(0)
        module = Mlp(dropout=0.5)
        loader = DataLoader(StreamedRows(f"{url}/tables", sample, shuffle=16), 8)
        keep = sl.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
        trainer = new_trainer(tmp_path, max_steps=steps, callbacks=[keep], name=f"to-{steps}-{resume is None}")
        trainer.fit(module, loader, ckpt_path=resume)
        return module

    whole = fit(17)  # seven batches an epoch: within the third one
    fit(10)
    assert same_weights(fit(17, f"{tmp_path}/to-10-True/last"), whole)


def test_what_is_wrong_is_said(url: str) -> None:
    store = open_store(url)
    store.write("bad/one.tar", b"no archive" * 100)
    store.write("worse/one.parquet", b"no table")
    store.write("none/readme.txt", b"nothing")
    cases = [
        (lambda: list(StreamedRows(f"{url}/bad")), ConfigError, r"one\.tar is damaged, or no tar archive"),
        (lambda: list(StreamedRows(f"{url}/worse")), ConfigError, r"one\.parquet is damaged, or no Parquet file"),
        (lambda: list(StreamedRows(f"{url}/none")), NotFoundError, r"has no file that ends in \.tar, "),
        (lambda: list(StreamedRows(f"{url}/nothing.tar")), NotFoundError, r"nothing\.tar"),
        (lambda: StreamedRows(url, shuffle=-1), ConfigError, r"shuffle=-1; set a number of rows from 0 on"),
    ]
    for act, kind, message in cases:
        with pytest.raises(kind, match=message):
            act()  # type: ignore[no-untyped-call]


def test_the_fingerprint_is_that_of_the_files(url: str) -> None:
    """Wherever they are, and without a look into them; whoever has a share, and in what order."""
    store = open_store(url)
    for name in ("first/a.tar", "first/b.tar", "copy/a.tar", "copy/b.tar", "other/a.tar"):
        store.write(f"marked/{name}", b"x" * (10 if name.endswith("a.tar") else 20))

    def of(name: str, **options: Any) -> str:
        return fingerprint(DataLoader(StreamedRows(f"{url}/marked/{name}", **options).sharded(1, 2), 8))

    assert of("first") == of("copy") == of("first", shuffle=7)
    store.write("marked/copy/b.tar", b"x" * 21)
    assert len({of("first"), of("copy"), of("other"), of("other/a.tar")}) == 3


def flipped(data: bytes) -> bytes:
    """With its middle damaged."""
    half = len(data) // 2
    return data[:half] + bytes(byte ^ 0xFF for byte in data[half : half + 64]) + data[half + 64 :]


COMPRESSED = gzip.compress(archive(range(20)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.tar", archive(range(20))[:-12_000]),
        ("cut.tgz", COMPRESSED[:-1000]),
        ("flipped.tar.gz", flipped(COMPRESSED)),
        ("none.tgz", b"no archive" * 100),
        ("cut.parquet", table(range(20))[:-100]),
        ("flipped.parquet", flipped(table(range(20)))),
        ("empty.parquet", b""),
    ],
)
def test_a_damaged_file_is_named(url: str, name: str, content: bytes) -> None:
    store = open_store(url)
    store.write(f"damaged/{name}", content)
    with pytest.raises(ConfigError) as caught:
        list(StreamedRows(f"{url}/damaged/{name}"))
    kind = "Parquet file" if name.endswith("parquet") else "tar archive"
    assert f"damaged/{name} is damaged, or no {kind}: " in str(caught.value)
    assert str(caught.value).endswith(". Write it again, or take it out of the directory.")


def test_a_store_that_cannot_be_read_is_no_damage(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> bytes:
        raise StoreError("the store is away")

    for directory in ("tars", "tables"):
        with monkeypatch.context() as patch:
            patch.setattr(type(open_store(url)), "read", refuse)
            with pytest.raises(StoreError, match="the store is away"):
                list(StreamedRows(f"{url}/{directory}"))


def test_a_loader_is_shared_by_its_dataset(url: str) -> None:
    loader = DataLoader(StreamedRows(f"{url}/tables", digit), 4, drop_last=True)
    shares = [torch.cat(list(shard(loader, rank, 2))).tolist() for rank in range(2)]
    assert [len(share) for share in shares] == [24, 24]
    assert shares[1] == load_digits().target[1:48:2].tolist()
