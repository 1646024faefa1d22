"""The loop: what it computes, and when it stops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from training import (
    Scripted,
    bare_trainer,
    digits_module,
    new_trainer,
    numbers,
    on_hook,
    same_weights,
    train_loader,
    val_loader,
)

import shipline as sl
from shipline.errors import TrainingError

# ---- what it computes ------------------------------------------------------------------------------------------------


def test_it_learns() -> None:
    module = digits_module()
    run = bare_trainer(max_epochs=8).fit(module, train_loader(1400), val_loader(397))
    assert run.metrics["val_acc"] > 0.85
    assert run.metrics["val_loss"] < 0.6
    assert run.module is module


def test_it_computes_what_a_plain_loop_computes_bit_for_bit() -> None:
    """Shuffling and dropout included; the loop draws nothing from the generators that plain PyTorch does not."""
    epochs = 3
    module = digits_module(dropout=0.3)
    bare_trainer(max_epochs=epochs).fit(module, train_loader(), val_loader())

    plain = digits_module(dropout=0.3)
    optimizer = plain.configure_optimizers()
    train, val = train_loader(), val_loader()
    for _ in range(epochs):
        for image, digit in train:
            loss = F.cross_entropy(plain(image), digit)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for _ in val:
            pass
    assert same_weights(module, plain)
    assert not same_weights(module, digits_module(dropout=0.3))


# ---- when it stops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps", "epochs"),
    [
        ({"max_epochs": 3}, 12, 3),
        ({"max_epochs": 0}, 0, 0),
        ({"max_steps": 6}, 6, 2),
        ({"max_steps": 8}, 8, 2),
        ({"max_steps": 0}, 0, 0),
        ({"max_epochs": 1, "max_steps": 100}, 4, 1),
        ({"max_epochs": 9, "max_steps": 5}, 5, 2),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6, 2),
        ({"max_epochs": 2, "limit_train_batches": 99}, 8, 2),
        ({"max_steps": 5, "limit_train_batches": 1}, 5, 5),
    ],
)
def test_how_long_it_trains(options: dict[str, Any], steps: int, epochs: int) -> None:
    trainer = bare_trainer(**options)
    trainer.fit(Scripted(), numbers(4))
    assert (trainer.global_step, trainer.epochs_done, trainer.current_epoch) == (steps, epochs, epochs)


@pytest.mark.parametrize(("min_epochs", "epochs"), [(0, 1), (1, 1), (3, 3), (9, 4)])
def test_who_asks_to_stop_waits_for_min_epochs(min_epochs: int, epochs: int) -> None:
    def stop(trainer: sl.Trainer, _module: Any) -> None:
        trainer.should_stop = True

    trainer = bare_trainer(max_epochs=4, min_epochs=min_epochs, callbacks=on_hook("on_train_epoch_end", stop))
    trainer.fit(Scripted(), numbers(2))
    assert trainer.epochs_done == epochs


def test_a_hook_that_returns_minus_one_skips_the_rest_of_the_epoch() -> None:
    class Skips(Scripted):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    trainer = bare_trainer(max_epochs=3)
    trainer.fit(Skips(), numbers(5))
    assert (trainer.epochs_done, trainer.global_step) == (3, 6)


def once(count: int) -> Iterator[Any]:
    yield from numbers(count)


@pytest.mark.parametrize(
    ("loader", "epoch"), [(DataLoader(TensorDataset(torch.zeros(0))), 0), ([], 0), (once(0), 0), (once(2), 1)]
)
def test_an_epoch_without_a_batch_is_an_error(loader: Any, epoch: int) -> None:
    """An iterator that is used up would otherwise train on nothing for the rest of the run, or for ever."""
    trainer = bare_trainer(max_steps=5)
    with pytest.raises(TrainingError, match="The training loader has no batch"):
        trainer.fit(Scripted(), loader)
    assert trainer.epochs_done == epoch


# ---- before and after a run ------------------------------------------------------------------------------------------


def test_a_module_knows_its_trainer_only_in_and_after_a_run() -> None:
    module = Scripted()
    with pytest.raises(TrainingError, match=r"Scripted is not attached to a Trainer: call trainer\.fit"):
        _ = module.trainer
    assert (module.current_epoch, module.global_step) == (0, 0)
    module.log("anywhere", 1.0)
    trainer = bare_trainer(max_epochs=2)
    trainer.fit(module, numbers(3))
    assert module.trainer is trainer
    assert (module.current_epoch, module.global_step) == (2, 6)
    assert (trainer.world_size, trainer.global_rank, trainer.is_global_zero) == (1, 0, True)
    assert module.device == torch.device("cpu")


def test_a_trainer_fits_again_as_if_it_were_new(tmp_path: Path) -> None:
    """Its second run has a directory, counters and callbacks' states of its own."""
    stopping = sl.EarlyStopping("score", patience=2)
    trainer = new_trainer(tmp_path, max_epochs=9, callbacks=[stopping, sl.ModelCheckpoint(monitor="score")])
    runs = [trainer.fit(Scripted([0.1, 1, 1, 1, 1, 1]), numbers(1), numbers(1)) for _ in range(2)]
    assert [run.url for run in runs] == [str(tmp_path / "scripted" / f"version_{n}") for n in (0, 1)]
    for run in runs:
        assert run.best_url == f"{run.url}/checkpoints/epoch=0-step=1"
        assert run.last_url == f"{run.url}/checkpoints/epoch=2-step=3"
        assert run.checkpoint.url == run.best_url
    assert trainer.global_step == 3
    assert (stopping.wait_count, stopping.stopped_epoch) == (2, 2)
