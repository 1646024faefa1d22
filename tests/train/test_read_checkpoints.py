"""A run that keeps its newest checkpoint only, and somebody who reads an older one meanwhile."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import safetensors.torch
from training import Mlp, new_trainer, train_loader

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.store import open_store


class Reads(sl.Callback):
    """Begins to read the newest checkpoint in one step, and ends in another; notes which are there then."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.reading: AbstractContextManager[None] | None = None
        self.there: list[str] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step not in (self.begin, self.end):
            return
        trainer.saver.writer.wait()
        directory = trainer.checkpoint_callback.dirpath
        if trainer.global_step == self.begin:
            self.checkpoint = open_checkpoint(trainer.checkpoint_callback.last_model_path)
            self.reading = self.checkpoint.kept()
            self.reading.__enter__()
            return
        assert self.reading is not None
        self.there = open_store(directory).list()
        assert self.checkpoint.weights(safetensors.torch.load).keys() == module.state_dict().keys()
        self.reading.__exit__(None, None, None)


def fit(url: str, steps: int, *callbacks: sl.Callback, resume: str | None = None) -> list[str]:
    """Train for so many steps, with a checkpoint after each; return the checkpoints that are there in the end."""
    keep = sl.ModelCheckpoint(every_n_train_steps=1)
    trainer = new_trainer(url, name="run", max_steps=steps, callbacks=[keep, *callbacks])
    trainer.fit(Mlp(), train_loader(256, shuffle=False), ckpt_path=resume)
    return open_store(str(keep.dirpath)).list()


def test_the_one_that_is_read_stays_until_the_reader_has_ended(url: str) -> None:
    reader = Reads(begin=2, end=5)
    assert fit(url, 7, reader) == ["epoch=0-step=7"]
    assert reader.there == ["epoch=0-step=2", "epoch=0-step=5"]


def test_a_run_that_goes_on_deletes_what_was_read_to_the_end(url: str) -> None:
    reader = Reads(begin=2, end=-1)
    assert fit(url, 3, reader) == ["epoch=0-step=2", "epoch=0-step=3"]
    assert reader.reading is not None
    reader.reading.__exit__(None, None, None)
    assert fit(url, 4, resume="last") == ["epoch=0-step=4"]
