"""Callbacks that end a run, save one that fails, or change how it steps."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric.utilities.spike import TrainingSpikeException as LightningSpike
from pytorch_lightning import callbacks as lightning
from pytorch_lightning.callbacks.spike import SpikeDetection as LightningSpikeDetection
from training import Mlp, Scripted, bare_trainer, new_trainer, numbers, on_hook, same_weights, train_loader, val_loader
from twins import Digits, calm, fit_both, loader, twins

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError, TrainingError
from shipline.store import open_store
from shipline.train import GradientAccumulationScheduler, LambdaCallback, OnExceptionCheckpoint, SpikeDetection
from shipline.train.callbacks.lambda_function import HOOKS
from shipline.train.callbacks.spike import TrainingSpikeException

# ---- OnExceptionCheckpoint -------------------------------------------------------------------------------------------


class FailsOnce(Mlp):
    """Draws at random, and fails in its 8th step, in the middle of the second epoch, once."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__(dropout=0.3)
        self.__dict__["error"] = error

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 7 and (error := self.__dict__["error"]) is not None:
            raise error
        return super().training_step(batch, batch_idx)


def fit_failing(root: str | Path, url: str, error: BaseException | None, resume: str | None = None) -> sl.Module:
    sl.seed_everything(0)
    module = FailsOnce(error)
    trainer = new_trainer(root, max_epochs=3, callbacks=OnExceptionCheckpoint(url), enable_checkpointing=False)
    trainer.fit(module, train_loader(160), val_loader(32), ckpt_path=resume)
    return module


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_run_that_failed_goes_on_from_its_last_batch(tmp_path: Path, url: str, error: BaseException) -> None:
    whole = fit_failing(tmp_path / "whole", url, None)
    assert open_store(url).list() == []
    with pytest.raises(type(error)):
        fit_failing(tmp_path / "parts", url, error)
    saved = OnExceptionCheckpoint(url).ckpt_path
    assert saved == f"{url}/on_exception"
    assert open_checkpoint(saved).manifest.global_step == 7
    assert same_weights(fit_failing(tmp_path / "parts", url, None, saved), whole)
    assert open_store(url).list() == [], "a run that succeeded needs it no more"


def test_a_later_failure_replaces_the_checkpoint(tmp_path: Path) -> None:
    def fail(at: int) -> None:
        def act(trainer: sl.Trainer, *_: Any) -> None:
            if trainer.global_step == at:
                raise ValueError("no")

        callbacks = [OnExceptionCheckpoint(str(tmp_path), "broken"), on_hook("on_train_batch_end", act)]
        with pytest.raises(ValueError, match="no"):
            bare_trainer(max_epochs=1, callbacks=callbacks).fit(Scripted(), numbers(9))

    fail(3)
    fail(2)
    assert open_checkpoint(str(tmp_path / "broken")).manifest.global_step == 2


def test_what_has_not_trained_is_not_saved(tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no")

    for hook in ("setup", "on_fit_start", "on_train_start", "on_train_batch_start", "on_test_start"):
        trainer = bare_trainer(max_epochs=1, callbacks=[OnExceptionCheckpoint(str(tmp_path)), on_hook(hook, fail)])
        with pytest.raises(ValueError, match="no"):
            trainer.fit(Scripted(), numbers(2)) if hook != "on_test_start" else trainer.test(
                Scripted([1.0]), numbers(1)
            )
    assert open_store(str(tmp_path)).list() == []


def test_a_resumed_run_that_fails_before_it_trains_saves_nothing(tmp_path: Path) -> None:
    """Where its loaders stand they do not know yet: such a checkpoint would begin the epoch again."""

    def fail(*_: Any) -> None:
        raise ValueError("no")

    keep = sl.ModelCheckpoint(every_n_train_steps=2)
    new_trainer(tmp_path, max_epochs=1, max_steps=2, callbacks=keep).fit(Scripted(), numbers(5))
    callbacks = [OnExceptionCheckpoint(str(tmp_path / "saved")), on_hook("on_train_start", fail)]
    with pytest.raises(ValueError, match="no"):
        new_trainer(tmp_path, max_epochs=1, callbacks=callbacks).fit(Scripted(), numbers(5), ckpt_path="last")
    assert open_store(str(tmp_path / "saved")).list() == []


def test_the_error_that_ended_the_run_is_the_one_that_is_seen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no directory")
    trainer = bare_trainer(max_epochs=3, callbacks=OnExceptionCheckpoint(str(tmp_path / "file")))
    with pytest.raises(ValueError, match="the batch is bad"):
        trainer.fit(FailsOnce(ValueError("the batch is bad")), train_loader(160))
    assert "OnExceptionCheckpoint could not save" in caplog.text


def test_other_things_of_that_name_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "on_exception").mkdir()
    (tmp_path / "on_exception" / "mine.txt").write_text("keep this")
    bare_trainer(max_epochs=1, callbacks=OnExceptionCheckpoint(str(tmp_path))).fit(Scripted(), numbers(1))
    assert (tmp_path / "on_exception" / "mine.txt").read_text() == "keep this"


@pytest.mark.parametrize(("name", "message"), [("", "has an empty filename"), ("a/b", "'a/b' is no checkpoint name")])
def test_names_of_files_that_are_none_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OnExceptionCheckpoint(str(tmp_path), filename=name)


# ---- GradientAccumulationScheduler -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduling", [{0: 2}, {1: 3, 3: 1}, {2: 4}])
def test_batches_are_accumulated_as_by_lightning(scheduling: dict[int, int]) -> None:
    given = dict(scheduling)
    ours, theirs = GradientAccumulationScheduler(scheduling), lightning.GradientAccumulationScheduler(dict(scheduling))
    assert scheduling == given, "the dict is the user's"
    pair = twins(ours, theirs, max_epochs=4)
    modules: list[Any] = []

    def make() -> Digits:
        modules.append(Digits())
        return modules[-1]

    fit_both(pair, make)
    assert pair[0].trainer.global_step == pair[1].trainer.global_step < 20
    assert same_weights(*modules)
    for epoch in range(6):
        assert ours.get_accumulate_grad_batches(epoch) == theirs.get_accumulate_grad_batches(epoch)
    assert ours.going_to_accumulate_grad_batches() == theirs.going_to_accumulate_grad_batches()
    assert (ours.scheduling, ours.epochs) == (theirs.scheduling, theirs.epochs)
    assert pair[0].trainer.accumulate_grad_batches == 1, "the Trainer is left as it was"


def test_a_run_resumed_in_the_middle_of_an_epoch_accumulates_as_before(tmp_path: Path) -> None:
    def fit(name: str, steps: int, resume: str | None = None) -> tuple[sl.Trainer, sl.Module]:
        sl.seed_everything(1)
        module = Mlp(dropout=0.2)
        callbacks = [GradientAccumulationScheduler({1: 3}), sl.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)]
        trainer = new_trainer(tmp_path, name=name, max_epochs=3, max_steps=steps, callbacks=callbacks)
        trainer.fit(module, train_loader(32 * 7), ckpt_path=resume)
        return trainer, module

    trainer, whole = fit("whole", -1)
    assert trainer.global_step == 7 + 3 + 3
    fit("parts", 8)
    again, parts = fit("parts", -1, "last")
    assert again.global_step == 13
    assert same_weights(whole, parts)


def test_the_number_of_steps_is_known_beforehand() -> None:
    seen: list[float] = []

    class Asks(Mlp):
        def configure_optimizers(self) -> Any:
            seen.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

    trainer = bare_trainer(max_epochs=4, callbacks=GradientAccumulationScheduler({1: 3, 3: 2}))
    trainer.fit(Asks(), train_loader(32 * 7))
    assert seen == [7 + 3 + 3 + 4] == [trainer.global_step]


class Manual(Scripted):
    automatic_optimization = False


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Scripted(), {"accumulate_grad_batches": 4}, "accumulate_grad_batches=4, and a GradientAccumulationScheduler"),
        (Manual(), {}, "Manual steps its optimizers itself, so GradientAccumulationScheduler means nothing"),
    ],
)
def test_only_one_may_decide_how_to_accumulate(module: Any, options: dict[str, Any], message: str) -> None:
    trainer = bare_trainer(max_epochs=1, callbacks=GradientAccumulationScheduler({0: 2}), **options)
    for _ in range(2):
        with pytest.raises(ConfigError, match=message):
            trainer.fit(module, numbers(1))
    assert trainer.accumulate_grad_batches == options.get("accumulate_grad_batches", 1)


@pytest.mark.parametrize("scheduling", [{}, {-1: 2}, {0: 0}, {0: 1.5}, {"0": 2}, {0: True}])
def test_schedules_that_mean_nothing_are_refused(scheduling: Any) -> None:
    with pytest.raises(ConfigError, match=r"has an empty scheduling|set an epoch from 0 on, and a number of batches"):
        GradientAccumulationScheduler(scheduling)


# ---- SpikeDetection --------------------------------------------------------------------------------------------------


class Losses(Digits):
    """Has the losses that it is told to have, in each epoch."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses = losses

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer.weight.sum() * 0 + self.losses[batch_idx]


def spikes(root: Path, losses: list[float], options: dict[str, Any]) -> list[tuple[int, list[int]]]:
    """The batch in which each trainer ends, and the batches to leave out."""
    ours = SpikeDetection(exclude_batches_path=str(root / "ours"), **options)
    theirs = LightningSpikeDetection(exclude_batches_path=str(root / "theirs"), **options)
    found = []
    one, other = twins(ours, theirs, max_epochs=2)
    one.trainer.nonfinite_loss = "ignore"
    for twin in (one, other):
        with calm(), contextlib.suppress(TrainingSpikeException, LightningSpike):
            twin.trainer.fit(Losses(losses), loader(0, 16 * len(losses)))
        found.append((twin.trainer.global_step, twin.callback.bad_batches))
    written = [root / name / "skip_batches.json" for name in ("ours", "theirs")]
    assert [file.exists() and json.loads(file.read_text()) for file in written] == [bad or False for _, bad in found]
    return found


@pytest.mark.parametrize(
    ("losses", "options", "spike"),
    [
        ([1, 1, 1, 1, 1, 1], {}, None),
        ([1, 1, 1, 9, 1, 1], {}, 3),
        ([9, 1, 1, 1, 1, 1], {}, 0),
        ([9, 1, 1, 1, 1, 1], {"warmup": 3, "window": 3}, None),
        ([1, 1, 1, 2.5, 1, 1], {}, None),
        ([1, 1, 1, 2.5, 1, 1], {"rtol": 1.0}, 3),
        ([1, 1, 1, 2.5, 1, 1], {"rtol": 1.0, "atol": 2.0}, None),
        ([1, 1, 1, 2.5, 1, 1], {"rtol": None, "atol": 1.0}, 3),
        ([9, 1, 1, 5, 4, 1], {"rtol": 0.5, "window": 2, "warmup": 2}, 3),
        ([1, 5, 9, 9, 9, 0.1], {"mode": "max", "rtol": 0.9}, 5),
        ([1, 5, 9, 9, 9, 30], {"mode": "max"}, None),
        ([1, 1, math.nan, 1, 1, 1], {}, 2),
        ([1, 1, math.inf, 1, 1, 1], {"finite_only": False, "rtol": None}, 2),
        ([1, 1, math.nan, 1, 1, 1], {"finite_only": False}, None),
        ([1, 1, math.nan, 9, 1, 1], {"finite_only": False}, 3),
        ([9, 9, 1, 1, 1, 1], {"warmup": 0}, None),
    ],
)
def test_a_spike_is_what_lightning_takes_for_one(
    tmp_path: Path, losses: list[float], options: dict[str, Any], spike: int | None
) -> None:
    ours, theirs = spikes(tmp_path, losses, options)
    assert ours == theirs
    bad = [] if spike is None else [spike - 1, spike]
    if spike != 0:  # in the second epoch, whose first batch is better than the last of the first
        assert ours[1] == bad


def test_a_spike_names_the_batch_and_writes_beside_the_run(tmp_path: Path) -> None:
    message = (
        r"The loss jumped to 90 \(epoch 0, batch 2, step 3\)\. Look at it and the one before, which .*version_0/sk"
    )
    with pytest.raises(TrainingError, match=message):
        new_trainer(tmp_path, max_epochs=1, callbacks=SpikeDetection()).fit(Losses([1, 1, 90]), loader(0, 48))
    assert json.loads((tmp_path / "losses" / "version_0" / "skip_batches.json").read_text()) == [1, 2]
    trainer = bare_trainer(max_epochs=1, callbacks=SpikeDetection(exclude_batches_path=str(tmp_path / "bad.json")))
    with pytest.raises(TrainingSpikeException, match=r"bad\.json"):
        trainer.fit(Losses([1, 1, 90]), loader(0, 48))
    assert json.loads((tmp_path / "bad.json").read_text()) == [1, 2]


def test_batches_without_a_loss_are_no_spikes() -> None:
    class Skips(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    detection = SpikeDetection()
    bare_trainer(max_epochs=1, callbacks=detection).fit(Skips(), numbers(6))
    assert len(detection._recent) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "best"}, "SpikeDetection has mode='best'; choose 'min' or 'max'"),
        ({"window": 0}, "SpikeDetection has window=0, warmup=1; set them from 1 and 0 on"),
        ({"warmup": -1}, "window=10, warmup=-1"),
    ],
)
def test_settings_of_spike_detection_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SpikeDetection(**options)


# ---- LambdaCallback --------------------------------------------------------------------------------------------------


def test_its_hooks_are_those_of_lightning() -> None:
    theirs = set(inspect.signature(lightning.LambdaCallback.__init__).parameters) - {"self"}
    assert set(HOOKS) == theirs
    called: set[str] = set()
    trainer = bare_trainer(
        max_epochs=1, callbacks=LambdaCallback(**{name: lambda *_, name=name: called.add(name) for name in HOOKS})
    )
    trainer.fit(Mlp(), train_loader(32), val_loader(32))
    assert theirs - called == {name for name in theirs if "test" in name or "predict" in name} | {
        "on_exception", "on_load_checkpoint", "on_save_checkpoint",
    }  # fmt: skip
