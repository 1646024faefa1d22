"""The memory that a checkpoint is copied into: taken beforehand, in a thread, and written over by the next."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from training import Mlp, new_trainer, train_loader

from shipline.train.checkpoints import image
from shipline.train.checkpoints.tree import read_tensors

MUCH = {"a": torch.arange(6 * 2**20, dtype=torch.float32), "b": torch.ones(3, dtype=torch.bool)}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads in which memory was taken."""
    fresh, threads = image._fresh, list[str]()

    def spied(size: int) -> mmap.mmap:
        threads.append(threading.current_thread().name)
        return fresh(size)

    monkeypatch.setattr(image, "_fresh", spied)
    return threads


def test_memory_is_taken_beforehand_in_a_thread(taken: list[str]) -> None:
    plain, reserved = image.Image(), image.Image()
    reserved.reserve(MUCH.values())
    assert reserved.fill(MUCH) == plain.fill(MUCH)
    assert taken == ["shipline-checkpoint-memory", "MainThread"]


def test_a_file_that_has_grown_gets_more_memory(taken: list[str]) -> None:
    grown = MUCH | {"c": torch.ones(2**20)}
    reserved = image.Image()
    reserved.reserve(MUCH.values())
    assert reserved.fill(grown) == image.Image().fill(grown)
    assert len(taken) == 3


def test_little_memory_is_taken_when_it_is_needed(taken: list[str]) -> None:
    image.Image().reserve([torch.ones(2**20)])
    assert not taken


def test_without_memory_beforehand_a_checkpoint_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [OSError("Cannot allocate memory"), mmap.mmap(-1, 2**25)]
    monkeypatch.setattr(image, "_fresh", Mock(side_effect=answers))
    reserved = image.Image()
    reserved.reserve(MUCH.values())
    assert read_tensors(bytes(reserved.fill(MUCH)))["a"].equal(MUCH["a"])


def test_a_run_has_taken_the_memory_when_it_saves(tmp_path: Path, taken: list[str]) -> None:
    """The weights', and the momentum's, which is there after the first step."""
    new_trainer(tmp_path, max_epochs=2, limit_train_batches=3).fit(Mlp(hidden=2**16), train_loader())
    assert taken == ["shipline-checkpoint-memory"] * 2
