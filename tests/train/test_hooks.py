"""The hooks of callbacks: who hears of an error, and who comes after whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import Scripted, bare_trainer, new_trainer, numbers, on_hook

import shipline as sl
from shipline.train import Callback, DataModule


def test_callbacks_hear_of_an_error_and_are_taken_down() -> None:
    heard: list[Any] = []
    callbacks = [
        on_hook("on_exception", lambda _t, _m, error: heard.append(error)),
        on_hook("teardown", lambda _t, _m, stage: heard.append(stage)),
    ]
    stop = on_hook("on_train_batch_end", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        bare_trainer(max_epochs=1, callbacks=[*callbacks, stop]).fit(Scripted(), numbers(2))
    assert [type(item) for item in heard] == [KeyboardInterrupt, str]


def raise_interrupt(*_arguments: Any) -> None:
    raise KeyboardInterrupt


def test_callbacks_hear_of_an_error_in_setup() -> None:
    class Broken(DataModule):
        def setup(self, stage: str) -> None:
            raise RuntimeError("no data today")

    heard: list[Any] = []
    callbacks = [
        on_hook("on_exception", lambda _t, _m, error: heard.append(str(error))),
        on_hook("teardown", lambda _t, _m, stage: heard.append(stage)),
    ]
    with pytest.raises(RuntimeError, match="no data today"):
        bare_trainer(max_epochs=1, callbacks=callbacks).fit(Scripted(), datamodule=Broken())
    assert heard == ["no data today", "fit"]


def test_callbacks_that_monitor_see_what_all_others_logged_at_the_end_of_the_epoch() -> None:
    class LogsLate(Scripted):
        def on_train_epoch_end(self) -> None:
            self.log("late", 1.5)

    class Judge(Callback):
        monitors = True
        seen: list[float] = []

        def on_train_epoch_end(self, trainer: sl.Trainer, module: sl.Module) -> None:
            self.seen.append(float(trainer.callback_metrics["late"]))
            module.log("judged", 1.0)

    judge = Judge()
    run = bare_trainer(max_epochs=2, callbacks=[judge]).fit(LogsLate(), numbers(1))
    assert judge.seen == [1.5, 1.5]
    assert run.metrics == {"late": 1.5, "judged": 1.0}


def test_callbacks_act_in_order_and_those_that_save_come_last(tmp_path: Path) -> None:
    first, second = on_hook("setup", lambda *_: None), on_hook("setup", lambda *_: None)
    checkpoint, stopping = sl.ModelCheckpoint(), sl.EarlyStopping("score")
    trainer = new_trainer(tmp_path, callbacks=[checkpoint, stopping, first, second])
    assert trainer.callbacks == [first, second, stopping, checkpoint]
    assert trainer.checkpoint_callback is checkpoint
