"""ModelCheckpoint, EarlyStopping, what is on by default, and callbacks of a user's own."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer as LightningTrainer, callbacks as lightning
from training import CountsSteps, Scripted, bare_trainer, new_trainer, numbers
from twins import calm

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError, TrainingError
from shipline.store import open_store
from shipline.train import Callback, EarlyStopping, ModelCheckpoint, ModelSummary, RichProgressBar, TQDMProgressBar


def fit(root: str | Path, scores: list[float], *callbacks: Callback, **options: Any) -> sl.train.Run:
    """One epoch of one step for each score; all checkpoints of the run are in `<root>/scripted/version_0`."""
    trainer = new_trainer(root, max_epochs=len(scores), callbacks=list(callbacks), **options)
    return trainer.fit(Scripted(scores), numbers(1), numbers(1))


def kept(url: str | None) -> list[int]:
    """The epochs whose checkpoints a directory holds."""
    assert url is not None
    names = [name for name in open_store(url).list() if name != "checkpoints.json"]
    return sorted(open_checkpoint(f"{url}/{name}").manifest.epoch for name in names)


# ---- ModelCheckpoint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "epochs", "best", "last"),
    [
        ({}, [3, 4], 3, 4),
        ({"save_last": False}, [3], 3, 3),
        ({"save_top_k": 2}, [2, 3, 4], 3, 4),
        ({"save_top_k": 2, "save_last": False}, [2, 3], 3, 3),
        ({"save_top_k": -1}, [0, 1, 2, 3, 4], 3, 4),
        ({"save_top_k": 0}, [4], None, 4),
        ({"mode": "max"}, [1, 4], 1, 4),
        ({"mode": "max", "save_top_k": 3, "save_last": False}, [0, 1, 4], 1, 4),
        ({"monitor": None}, [4], 4, 4),
        ({"monitor": None, "save_top_k": 2}, [3, 4], 4, 4),
        ({"monitor": None, "save_top_k": -1}, [0, 1, 2, 3, 4], 4, 4),
        ({"every_n_epochs": 2}, [3], 3, 3),
        ({"every_n_epochs": 2, "save_top_k": -1}, [1, 3], 3, 3),
        ({"every_n_epochs": 4, "mode": "max"}, [3], 3, 3),
    ],
)
def test_which_checkpoints_are_kept(
    tmp_path: Path, options: dict[str, Any], epochs: list[int], best: int | None, last: int
) -> None:
    checkpoint = ModelCheckpoint(**({"monitor": "score"} | options))
    run = fit(tmp_path, [4.0, 5.0, 2.0, 1.0, 3.0], checkpoint)
    assert kept(f"{run.url}/checkpoints") == epochs
    assert open_checkpoint(f"{run.url}/last").manifest.epoch == last
    assert open_checkpoint(f"{run.url}/best").manifest.epoch == (last if best is None else best)
    assert (run.best_url is None) == (best is None)
    assert run.checkpoint.manifest.epoch == (last if best is None else best)


def test_an_interval_of_no_time_saves_after_every_step(tmp_path: Path) -> None:
    run = fit(tmp_path, [1.0] * 3, ModelCheckpoint(train_time_interval=timedelta(0), save_top_k=-1))
    assert kept(f"{run.url}/checkpoints") == [0, 1, 2]


def test_what_is_no_longer_kept_is_gone_from_the_store(url: str) -> None:
    run = fit(url, [3.0, 2.0, 2.5], ModelCheckpoint(monitor="score", filename="at-{epoch}"))
    store = open_store(f"{run.url}/checkpoints")
    assert store.list() == ["at-epoch=1", "at-epoch=2"]
    for name in store.list():
        assert sorted(store.list(name))[-1] == "manifest.json"
        assert len(store.list(name)) == 2


def test_best_and_last_are_names_of_the_run_and_of_the_experiment(url: str) -> None:
    fit(url, [1.0, 2.0], ModelCheckpoint(monitor="score"))
    second = fit(url, [3.0, 1.5, 4.0], ModelCheckpoint(monitor="score"))
    assert second.url == f"{url}/scripted/version_1"
    for place in (second.url, f"{url}/scripted"):
        assert open_checkpoint(f"{place}/best").url == second.best_url == f"{second.url}/checkpoints/epoch=1-step=2"
        assert open_checkpoint(f"{place}/last").url == second.last_url == f"{second.url}/checkpoints/epoch=2-step=3"
    assert open_checkpoint(f"{url}/scripted/version_0/best").manifest.epoch == 0


def test_the_score_of_the_best(tmp_path: Path) -> None:
    lowest, unmonitored = ModelCheckpoint(monitor="score"), ModelCheckpoint()
    highest = ModelCheckpoint(monitor="score", mode="max", dirpath=str(tmp_path / "x"))
    assert (lowest.best_model_path, lowest.last_model_path, lowest.best_model_score) == ("", "", None)
    fit(tmp_path, [4.0, 5.0, 2.0], lowest, highest, unmonitored)
    assert (lowest.best_model_score, highest.best_model_score, unmonitored.best_model_score) == (2.0, 5.0, None)
    manifest = open_checkpoint(str(highest.best_model_path)).manifest
    assert (manifest.monitor, manifest.mode, manifest.metrics["score"]) == ("score", "max", 5.0)


def test_a_directory_of_its_own_holds_its_pointers(url: str, tmp_path: Path) -> None:
    directory = f"{url}/mine"
    checkpoint = ModelCheckpoint(dirpath=directory, monitor="score")
    run = fit(tmp_path, [1.0, 2.0], checkpoint)
    assert kept(directory) == [0, 1]
    assert open_checkpoint(f"{directory}/best").manifest.epoch == 0
    assert open_checkpoint(f"{directory}/last").manifest.epoch == 1
    assert run.best_url == f"{directory}/epoch=0-step=1"
    assert "checkpoints" not in open_store(str(run.url)).list()


def test_a_relative_directory_is_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, [1.0], ModelCheckpoint(dirpath="mine"))
    assert kept(str(tmp_path / "mine")) == [0]


def test_a_second_run_into_one_directory_replaces_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        checkpoint = ModelCheckpoint(dirpath=str(tmp_path / "mine"), filename="best")
        fit(tmp_path, [1.0], checkpoint)
    names = [name for name in open_store(str(tmp_path / "mine")).list() if name != "checkpoints.json"]
    assert names == ["best", "best-v1", "best-v2"]
    assert open_checkpoint(str(tmp_path / "mine" / "last")).url == str(tmp_path / "mine" / "best-v2")


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("{epoch}-{step}", "epoch=1-step=2"),
        ("{epoch:03d}", "epoch=001"),
        ("digits-{score:.2f}", "digits-score=0.12"),
        ("{score}", "score=0.125"),
        ("run 7/{epoch}", "run_7_epoch=1"),
        ("plain", "plain-v1"),
    ],
)
def test_names_of_checkpoints(tmp_path: Path, filename: str, name: str) -> None:
    run = fit(tmp_path, [0.5, 0.125], ModelCheckpoint(filename=filename, monitor="score"))
    assert run.best_url == f"{run.url}/checkpoints/{name}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"monitor": "scor"},
            r"ModelCheckpoint monitors 'scor', which nobody logged. Did you mean 'score'\? Logged: score",
        ),
        ({"filename": "{scor:.2f}"}, r"filename names 'scor', which nobody logged. Did you mean 'score'\?"),
    ],
)
def test_a_metric_that_nobody_logged_names_the_nearest(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(tmp_path, [1.0], ModelCheckpoint(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "mni"}, "ModelCheckpoint has mode='mni'; choose 'min' or 'max'"),
        ({"save_top_k": -2}, "save_top_k=-2; -1 keeps all"),
        ({"every_n_epochs": -1}, "every_n_epochs=-1, which must not be negative"),
        ({"every_n_train_steps": 3, "every_n_epochs": 1}, "has every_n_train_steps, every_n_epochs, of which one"),
        ({"montior": "x"}, "ModelCheckpoint has no option 'montior'. Did you mean 'monitor'"),
    ],
)
def test_settings_of_model_checkpoint_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelCheckpoint(**options)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_score_that_is_no_number_is_never_best(tmp_path: Path, mode: Any) -> None:
    run = fit(tmp_path, [math.nan, 2.0, math.nan], ModelCheckpoint(monitor="score", mode=mode))
    assert open_checkpoint(f"{run.url}/best").manifest.epoch == 1
    last = open_checkpoint(f"{run.url}/last").manifest
    assert (last.epoch, last.metrics) == (2, {"score": None})


def test_of_equal_scores_the_older_is_kept(tmp_path: Path) -> None:
    run = fit(tmp_path, [2.0, 1.0, 1.0, 1.0], ModelCheckpoint(monitor="score", save_last=False))
    assert kept(f"{run.url}/checkpoints") == [1]


def test_nothing_is_saved_where_an_epoch_was_not_validated(tmp_path: Path) -> None:
    run = fit(tmp_path, [3.0, 2.0, 1.0], ModelCheckpoint(save_top_k=-1), check_val_every_n_epoch=2)
    assert kept(f"{run.url}/checkpoints") == [1]


def test_without_validation_every_epoch_is_saved(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, max_epochs=3, callbacks=ModelCheckpoint(save_top_k=-1), check_val_every_n_epoch=2)
    run = trainer.fit(Scripted(), numbers(1))
    assert kept(f"{run.url}/checkpoints") == [0, 1, 2]


def test_a_run_that_keeps_nothing_says_so_when_asked() -> None:
    run = bare_trainer(max_epochs=1).fit(Scripted(), numbers(1))
    assert (run.url, run.best_url, run.last_url) == (None, None, None)
    with pytest.raises(ValueError, match="The run wrote no checkpoint: leave enable_checkpointing on"):
        _ = run.checkpoint


# ---- EarlyStopping ---------------------------------------------------------------------------------------------------


class Scores(LightningModule):
    """Scripted, for Lightning."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (batch[0] * self.weight).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("score", float(self.scores[self.current_epoch]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("scores", "options", "epochs", "reason"),
    [
        ([3, 2, 1, 0], {}, 4, None),
        ([1, 2, 3, 4, 5], {}, 4, "score did not improve on 1 for 3 checks"),
        ([1, 2, 3, 4, 5], {"patience": 1}, 2, "score did not improve on 1 for 1 checks"),
        ([3, 4, 2, 4, 4, 4, 4], {"patience": 2}, 5, "score did not improve on 2 for 2 checks"),
        ([1, 1, 1, 1], {"patience": 2}, 3, "score did not improve on 1 for 2 checks"),
        ([5, 4, 3, 2, 1], {"mode": "max", "patience": 2}, 3, "score did not improve on 5 for 2 checks"),
        ([1, 2, 3, 4], {"mode": "max", "patience": 2}, 4, None),
        ([5.0, 4.9, 4.8, 4.7], {"min_delta": 0.5, "patience": 2}, 3, "score did not improve on 5 for 2 checks"),
        ([5.0, 4.9, 4.8, 4.7], {"min_delta": -0.5, "patience": 2}, 3, "score did not improve on 5 for 2 checks"),
        ([5.0, 4.0, 3.0, 2.0], {"min_delta": 0.5, "patience": 2}, 4, None),
        ([1.0, 1.4, 2.1, 2.2], {"mode": "max", "min_delta": 1.0, "patience": 3}, 4, None),
        ([2, math.nan, 1], {}, 2, "score is nan"),
        ([2, -math.inf, 1], {}, 2, "score is -inf"),
        ([2, math.nan, 1, 3], {"check_finite": False, "patience": 2}, 4, None),
        ([5, 0.5, 4], {"stopping_threshold": 1.0}, 2, "score=0.5 is better than 1.0"),
        ([5, 1.0, 4], {"stopping_threshold": 1.0}, 3, None),
        ([5, 7, 4], {"stopping_threshold": 6.0, "mode": "max"}, 2, "score=7 is better than 6.0"),
        ([5, 9, 4], {"divergence_threshold": 8.0}, 2, "score=9 is worse than 8.0"),
        ([5, 2, 6], {"divergence_threshold": 3.0, "mode": "max"}, 2, "score=2 is worse than 3.0"),
    ],
)
def test_when_early_stopping_stops(
    scores: list[float], options: dict[str, Any], epochs: int, reason: str | None
) -> None:
    stopping = EarlyStopping("score", **options)
    trainer = bare_trainer(max_epochs=len(scores), callbacks=stopping)
    trainer.fit(Scripted(scores), numbers(1), numbers(1))
    assert trainer.epochs_done == epochs
    assert stopping.stopping_reason_message == reason
    assert stopping.stopped_epoch == (epochs - 1 if reason else 0)

    theirs = lightning.EarlyStopping("score", **({"min_delta": 0.0} | options | {"min_delta": stopping.min_delta}))
    with calm():
        lightnings = LightningTrainer(
            max_epochs=len(scores), accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, callbacks=[theirs],
        )  # fmt: skip
        lightnings.fit(Scores(scores), numbers(1), numbers(1))
    assert lightnings.current_epoch == epochs
    assert stopping.stopping_reason.name == theirs.stopping_reason.name
    for name in ("wait_count", "stopped_epoch"):
        assert getattr(stopping, name) == getattr(theirs, name)
    assert stopping.best_score.item() == pytest.approx(theirs.best_score.item())


def test_early_stopping_waits_for_min_epochs() -> None:
    trainer = bare_trainer(max_epochs=9, min_epochs=6, callbacks=EarlyStopping("score", patience=1))
    trainer.fit(Scripted([1.0] * 9), numbers(1), numbers(1))
    assert trainer.epochs_done == 6


def test_early_stopping_counts_checks_and_not_epochs() -> None:
    trainer = bare_trainer(max_epochs=9, check_val_every_n_epoch=2, callbacks=EarlyStopping("score", patience=2))
    trainer.fit(Scripted([1.0] * 9), numbers(1), numbers(1))
    assert trainer.epochs_done == 6


def test_early_stopping_may_monitor_what_training_logs() -> None:
    class Logs(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train_score", 1.0)
            return super().training_step(batch, batch_idx)

    trainer = bare_trainer(max_epochs=9, callbacks=EarlyStopping("train_score", patience=2))
    trainer.fit(Logs(), numbers(1))
    assert trainer.epochs_done == 3


def test_early_stopping_names_the_nearest_metric() -> None:
    def fit(strict: bool) -> int:
        trainer = bare_trainer(max_epochs=2, callbacks=EarlyStopping("scores", strict=strict))
        trainer.fit(Scripted([1.0, 1.0]), numbers(1), numbers(1))
        return trainer.epochs_done

    message = r"EarlyStopping monitors 'scores', which nobody logged. Did you mean 'score'\? Logged: score"
    with pytest.raises(ConfigError, match=message):
        fit(strict=True)
    assert fit(strict=False) == 2
    with pytest.raises(ConfigError, match="EarlyStopping has mode='best'; choose 'min' or 'max'"):
        EarlyStopping("score", mode="best")  # type: ignore[arg-type]


def test_early_stopping_says_what_it_sees(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shipline.train.callbacks.early_stopping")
    stopping, missing = EarlyStopping("score", patience=1, verbose=True), EarlyStopping("x", strict=False, verbose=True)
    bare_trainer(max_epochs=9, callbacks=[stopping, missing]).fit(Scripted([2, 1, 3]), numbers(1), numbers(1))
    assert caplog.messages == [
        "score improved to 2.", "EarlyStopping monitors 'x', which nobody logged. Logged: score.",
        "score improved to 1.", "EarlyStopping monitors 'x', which nobody logged. Logged: score.",
        "Stopping: score did not improve on 1 for 1 checks.",
        "EarlyStopping monitors 'x', which nobody logged. Logged: score.",
    ]  # fmt: skip


def test_early_stopping_looks_at_validations_that_go_by_time() -> None:
    """An epoch may end before there was one."""
    trainer = bare_trainer(max_epochs=2, val_check_interval={"hours": 1}, callbacks=EarlyStopping("score"))
    trainer.fit(Scripted([1.0]), numbers(1), numbers(1))
    assert trainer.epochs_done == 2


def test_a_resumed_run_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    first, second = EarlyStopping("score", patience=2), EarlyStopping("score", patience=4)
    fit(tmp_path, [1.0] * 9, first)
    assert (first.wait_count, first.stopped_epoch) == (2, 2)
    trainer = new_trainer(tmp_path, max_epochs=9, callbacks=second)
    trainer.fit(Scripted([1.0] * 9), numbers(1), numbers(1), ckpt_path="last")
    assert (second.wait_count, second.stopped_epoch, trainer.epochs_done) == (4, 4, 5)


# ---- what is on by default -------------------------------------------------------------------------------------------


def test_defaults_are_added_once() -> None:
    added = sl.Trainer().callbacks
    assert [type(callback) for callback in added] == [ModelSummary, RichProgressBar, ModelCheckpoint]
    mine = [ModelCheckpoint(monitor="x"), TQDMProgressBar()]
    assert set(sl.Trainer(callbacks=mine, enable_model_summary=False).callbacks) == set(mine)
    assert sl.Trainer(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False).callbacks == []


# ---- a user's own ----------------------------------------------------------------------------------------------------


def test_the_state_of_a_users_callback_is_saved_and_restored(tmp_path: Path) -> None:
    first, other = CountsSteps(), CountsSteps("other")
    other.count = 100
    new_trainer(tmp_path, max_epochs=2, callbacks=[first, other]).fit(Scripted(), numbers(3))
    assert (first.count, other.count) == (6, 106)

    later, new = CountsSteps(), CountsSteps("new")
    trainer = new_trainer(tmp_path, max_epochs=3, callbacks=[later, new])
    trainer.fit(Scripted(), numbers(3), ckpt_path="last")
    assert (later.count, new.count) == (9, 3)


def test_a_state_that_is_no_plain_data_says_where(tmp_path: Path) -> None:
    class Careless(CountsSteps):
        def state_dict(self) -> dict[str, Any]:
            return {"when": [1, object()]}

    with pytest.raises(TrainingError, match=r"state\.callbacks\.steps\.when\[1\] is a object: a checkpoint keeps"):
        new_trainer(tmp_path, max_epochs=1, callbacks=Careless()).fit(Scripted(), numbers(1))
    assert open_store(str(tmp_path / "scripted" / "version_0")).list("checkpoints") == []
