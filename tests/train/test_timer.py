"""The Timer: what it measures, and when it stops a run; Lightning's beside it."""

from __future__ import annotations

import types
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import callbacks as lightning
from training import CountsSteps, bare_trainer, new_trainer
from twins import Digits, Twin, calm, loader, twins

from shipline.errors import ConfigError
from shipline.train import Timer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that both timers see, which steps put forward."""
    seconds = [50.0]
    fake = types.SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr("shipline.train.callbacks.timer.time", fake)
    monkeypatch.setattr("pytorch_lightning.callbacks.timer.time", fake)
    return seconds


def ticking(clock: list[float]) -> Digits:
    """A module of which a training step takes 3 seconds, a validation step 2, a test step 5, a prediction 7."""

    class Ticks(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock[0] += 3
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            clock[0] += 2

        def test_step(self, batch: Any, batch_idx: int) -> None:
            clock[0] += 5

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            clock[0] += 7

    return Ticks()


def timed(clock: list[float], *arguments: Any, **options: Any) -> tuple[Twin, Twin]:
    """Both trainers after a fit of at most two epochs of five batches, of which each ends in three of validation."""
    pair = twins(Timer(*arguments, **options), lightning.Timer(*arguments, **options), max_epochs=2)
    for twin in pair:
        clock[0] = 50.0
        with calm():
            twin.trainer.fit(ticking(clock), loader(), loader(1400, 48))
    return pair


def test_times_are_those_of_lightning(clock: list[float]) -> None:
    ours, theirs = (twin.callback for twin in timed(clock, {"minutes": 2}))
    for name in ("start_time", "end_time", "time_elapsed", "time_remaining"):
        assert getattr(ours, name)() == getattr(theirs, name)("train")
    for name in ("start_time", "end_time"):
        assert getattr(ours, name)("validate") == getattr(theirs, name)("validate")
        assert getattr(ours, name)("test") is getattr(theirs, name)("test") is None
    assert (ours.time_elapsed(), ours.time_remaining()) == (42, 78)
    assert ours.time_elapsed("validate") == 12, "Lightning's is that of the last validation alone"
    assert theirs.time_elapsed("validate") == 6
    assert ours.state_dict() == {"time_elapsed": {"train": 42, "validate": 12, "test": 0, "predict": 0}}


def test_other_stages_are_measured_too(clock: list[float]) -> None:
    timer = Timer()
    trainer = bare_trainer(callbacks=timer)
    for _ in range(2):
        trainer.validate(ticking(clock), loader(0, 32), verbose=False)
        trainer.test(ticking(clock), loader(0, 48), verbose=False)
        trainer.predict(ticking(clock), loader(0, 16))
    assert [timer.time_elapsed(stage) for stage in ("train", "validate", "test", "predict")] == [0, 4, 15, 7]
    assert timer.time_remaining() is None
    assert timer.end_time("test") == (timer.start_time("test") or 0) + 15


@pytest.mark.parametrize(
    ("duration", "interval"),
    [
        ("00:00:00:07", "step"),
        (timedelta(seconds=9), "step"),
        ({"seconds": 1}, "epoch"),
        ({"seconds": 22}, "epoch"),
        ("01:02:03:04", "step"),
        ({"seconds": 0}, "step"),
        ({"seconds": 0}, "epoch"),
    ],
)
def test_it_stops_when_lightnings_does(clock: list[float], duration: Any, interval: str) -> None:
    ours, theirs = (twin.trainer for twin in timed(clock, duration, interval=interval))
    assert (ours.global_step, ours.current_epoch) == (theirs.global_step, theirs.current_epoch)


def test_it_says_that_the_time_is_up(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shipline.train.callbacks.timer")
    for verbose in (False, True):
        bare_trainer(max_epochs=1, callbacks=Timer({"seconds": 4}, verbose=verbose)).fit(ticking(clock), loader())
    assert caplog.messages == ["Stopping: the time of 4 s is up."]


def test_a_resumed_run_has_what_is_left(clock: list[float], tmp_path: Path) -> None:
    def fit(limit: int, resume: str | None = None) -> tuple[Any, Timer]:
        timer = Timer({"seconds": limit})
        trainer = new_trainer(tmp_path, max_epochs=9, callbacks=timer)
        trainer.fit(ticking(clock), loader(), ckpt_path=resume)
        return trainer, timer

    first, timer = fit(15)
    assert (first.global_step, timer.time_elapsed()) == (5, 15)
    clock[0] += 1000
    second, timer = fit(24, "last")
    assert (second.global_step, timer.time_elapsed()) == (8, 24)
    third, timer = fit(20, "last")
    assert (third.global_step, timer.time_elapsed()) == (8, 24), "the time was up before"


def test_its_clock_stops_with_a_run_that_fails(clock: list[float]) -> None:
    class Fails(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock[0] += 3
            raise RuntimeError("no")

    timer = Timer()
    with pytest.raises(RuntimeError, match="no"):
        bare_trainer(max_epochs=1, callbacks=timer).fit(Fails(), loader())
    clock[0] += 1000
    assert timer.time_elapsed() == 3


def test_the_trainers_own_limit_is_one_too(clock: list[float]) -> None:
    counter = CountsSteps()
    trainer = bare_trainer(max_time="00:00:00:07", callbacks=counter)
    trainer.fit(ticking(clock), loader())
    assert counter.count == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Timer("12:00:00"), "duration='12:00:00' is no length of time: give DD:HH:MM:SS"),
        (lambda: Timer({"hour": 1}), r"duration=\{'hour': 1\} is no length of time"),
        (lambda: Timer(timedelta(seconds=-1)), "is no length of time"),
        (lambda: Timer(interval="batch"), "Timer has interval='batch'; choose 'step' or 'epoch'"),
        (lambda: Timer().time_elapsed("tset"), r"Timer measures no 'tset'. Did you mean 'test'\? Known: train, "),
        (lambda: Timer().start_time("fit"), "Timer measures no 'fit'. Known: train, validate, test, predict"),
    ],
)
def test_what_means_nothing_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
