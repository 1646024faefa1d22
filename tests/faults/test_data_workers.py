"""A process that reads rows dies, or meets a row that cannot be read: the run says so, and goes on exactly."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from training import Mlp, new_trainer, rows, same_weights

import shipline as sl
from shipline.errors import TrainingError

COUNT, BAD = 96, 37
PICTURES, DIGITS = rows(0, COUNT).tensors


class Rows(Dataset[Any]):
    """Rows with their numbers; reading one of them goes wrong as long as there is no file that says that it has.

    Args:
        what: "killed": the process that reads is; "damaged": the row cannot be read.
        mark: the file.
    """

    def __init__(self, what: str, mark: Path) -> None:
        self.what, self.mark = what, mark

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        in_worker = get_worker_info() is not None  # the run looks at some rows itself, for their fingerprint
        if index == BAD and in_worker and not self.mark.exists():
            self.mark.touch()
            if self.what == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("the picture of row 37 is cut")
        return PICTURES[index], DIGITS[index], index


class Seen(sl.Callback):
    """Notes the rows of each step that was made; one that is made again counts as it was the last time."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], list[int]] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rows[trainer.current_epoch, batch_idx] = batch[2].tolist()


class Numbered(Mlp):
    """Of rows that carry their number."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch[:2], batch_idx)


def train(root: Path, dataset: Rows, seen: Seen, ckpt_path: str | None = None) -> torch.nn.Module:
    sl.seed_everything(3)
    module = Numbered(dropout=0.5)
    keeper = sl.ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
    trainer = new_trainer(root, max_epochs=2, callbacks=[seen, keeper], name="rows")
    trainer.fit(module, DataLoader(dataset, 8, shuffle=True, num_workers=2), ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize(
    ("what", "said"),
    [("killed", "A worker process of the DataLoader died: "), ("damaged", "the picture of row 37 is cut")],
)
def test_a_row_that_cannot_be_read_ends_the_run_and_none_is_lost(tmp_path: Path, what: str, said: str) -> None:
    """T17: named, each row once an epoch, and the weights of a run in which it could be read."""
    whole = tmp_path / "nothing wrong"
    whole.touch()
    expected = train(tmp_path / "whole", Rows(what, whole), Seen())
    dataset, seen = Rows(what, tmp_path / "mark"), Seen()
    with pytest.raises((TrainingError, ValueError), match=said):
        train(tmp_path / "runs", dataset, seen)
    assert dataset.mark.exists()
    found = train(tmp_path / "runs", dataset, seen, "auto")
    given = Counter((epoch, row) for (epoch, _), batch in seen.rows.items() for row in batch)
    assert given == Counter((epoch, row) for epoch in range(2) for row in range(COUNT))
    assert same_weights(found, expected)


class Ended:
    """Says so, where another process ends it than the one that made it."""

    def __init__(self, mark: Path) -> None:
        self.mark, self.process, self.itself = mark, os.getpid(), self

    def __del__(self) -> None:
        if os.getpid() != self.process:
            self.mark.touch()


class Collecting(Dataset[Any]):
    """Digits; reading one collects the garbage."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        gc.collect()
        return PICTURES[index], DIGITS[index]


def test_workers_do_not_end_what_this_process_has_thrown_away(tmp_path: Path) -> None:
    """A runtime's threads are not in a fork: OpenVINO waits for them for ever."""
    gc.disable()
    try:
        Ended(tmp_path / "ended")
        new_trainer(tmp_path).validate(Mlp(), DataLoader(Collecting(), 32, num_workers=1))
    finally:
        gc.enable()
    assert not (tmp_path / "ended").exists()
