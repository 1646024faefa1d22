"""Which checkpoints "best" and "last" mean, to the trainer that made them and to others."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from training import Scripted, new_trainer, numbers, on_hook

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.store import open_store
from shipline.train import ModelCheckpoint


def test_by_name_the_checkpoints_of_a_directory_of_its_own_are_found(tmp_path: Path) -> None:
    """By the trainer that made them, and by one of another process, which knows the directory alone."""

    def trainer(epochs: int) -> sl.Trainer:
        checkpoint = ModelCheckpoint(dirpath=str(tmp_path / "mine"), monitor="score")
        return new_trainer(tmp_path, max_epochs=epochs, callbacks=[checkpoint])

    first, module, data = trainer(2), Scripted([1.0, 2.0, 3.0]), (numbers(1), numbers(1))
    first.fit(module, *data)
    for each in (first, trainer(3)):
        each.validate(module, numbers(1), ckpt_path="best")
        assert each.ckpt_path == str(tmp_path / "mine" / "epoch=0-step=1")
    resumed = trainer(3)
    resumed.fit(module, *data, ckpt_path="last")
    assert (resumed.ckpt_path, resumed.global_step) == (str(tmp_path / "mine" / "epoch=1-step=2"), 3)


def test_the_last_is_the_newest_of_all_directories(tmp_path: Path) -> None:
    def trainer(epochs: int) -> sl.Trainer:
        callbacks = [
            ModelCheckpoint(every_n_epochs=2), ModelCheckpoint(dirpath=str(tmp_path / "steps"), every_n_train_steps=1)
        ]  # fmt: skip
        return new_trainer(tmp_path, max_epochs=epochs, callbacks=callbacks)

    trainer(3).fit(Scripted([1.0] * 4), numbers(1))
    resumed = trainer(4)
    resumed.fit(Scripted([1.0] * 4), numbers(1), ckpt_path="last")
    assert resumed.ckpt_path == str(tmp_path / "steps" / "epoch=2-step=3")


def test_a_trainer_finds_its_own_best_beside_that_of_a_later_run(tmp_path: Path) -> None:
    trainers = [new_trainer(tmp_path, max_epochs=1, callbacks=[ModelCheckpoint(monitor="score")]) for _ in range(2)]
    modules = [Scripted([1.0] * 2), Scripted([2.0] * 2)]
    runs = [trainer.fit(module, numbers(1), numbers(1)) for trainer, module in zip(trainers, modules, strict=True)]
    for trainer, run in zip(trainers, runs, strict=True):
        for word in ("best", "last", None):
            trainer.validate(dataloaders=numbers(1), ckpt_path=word)
            assert trainer.ckpt_path == run.best_url


def test_of_several_in_one_directory_the_first_says_which_is_best(tmp_path: Path) -> None:
    lowest, newest = ModelCheckpoint(monitor="score", save_last=False), ModelCheckpoint(every_n_train_steps=1)
    trainer = new_trainer(tmp_path, max_epochs=3, callbacks=[lowest, newest])
    run = trainer.fit(Scripted([1.0, 2.0, 3.0]), numbers(1), numbers(1))
    for place in (run.url, str(tmp_path / "scripted")):
        assert open_checkpoint(f"{place}/best").url == run.best_url
        assert open_checkpoint(f"{place}/best").manifest.epoch == 0
        assert open_checkpoint(f"{place}/last").manifest.epoch == 2


@pytest.mark.parametrize(("when", "names"), [("interrupted", ["score=nan"]), ("steps", ["score=nan", "score=nan-v1"])])
def test_what_a_name_tells_may_not_have_been_logged_yet(tmp_path: Path, when: str, names: list[str]) -> None:
    """A checkpoint that is due before the first validation is not refused for its name."""
    every = 2 if when == "steps" else None
    keep = ModelCheckpoint(str(tmp_path / "mine"), filename="{score:.2f}", save_top_k=-1, every_n_train_steps=every)
    stop = on_hook("on_train_batch_end", lambda trainer, _module, _outputs, _batch, number: asked(number))

    def asked(number: int) -> None:
        if number == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        new_trainer(tmp_path, max_epochs=1, callbacks=[keep, stop]).fit(Scripted([1.0]), numbers(9), numbers(1))
    found = [name for name in open_store(str(keep.dirpath)).list() if name != "checkpoints.json"]
    assert found[: len(names)] == names
