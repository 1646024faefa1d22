"""`self.log`: what is kept per step, what is reduced over an epoch, and who sees it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from hypothesis import given, strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from training import Mlp, Recorder, Scripted, bare_trainer, new_trainer, numbers, on_hook, rows, val_loader

import shipline as sl
from shipline.errors import ConfigError, TrainingError
from shipline.train import Module
from shipline.train.metrics import MetricLog, finite_or_none, rows_of
from shipline.train.metrics.reduction import Reduction

REDUCTIONS: tuple[Reduction, ...] = ("mean", "sum", "min", "max")


class Logs(Scripted):
    """Logs the mean of each batch, with the options given, in a hook or step of that name."""

    def __init__(self, where: str, **options: Any) -> None:
        super().__init__()
        self.options = options
        step = getattr(type(self), where)

        def log(self_: Logs, *arguments: Any) -> Any:
            value = arguments[0][0].mean() if where.endswith("_step") else 7.0
            self_.log("x", value, **self_.options)
            return step(self_, *arguments)

        self.__class__ = type("Logs", (Logs,), {where: log})


def fit(module: Any, train: Any = None, val: Any = None, **options: Any) -> tuple[sl.Trainer, Recorder]:
    """Two epochs over the numbers 0 to 5 in batches of four and two, every step logged."""
    recorder = Recorder()
    settings = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    trainer = bare_trainer(logger=recorder, default_root_dir="memory://metrics", **(settings | options))
    trainer.fit(module, train or numbers(6, 4), val)
    return trainer, recorder


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"x": [(0, 1.5), (1, 4.5), (2, 1.5), (3, 4.5)]}),
        ({"on_step": True}, {"x": [(0, 1.5), (1, 4.5), (2, 1.5), (3, 4.5)]}),
        ({"on_epoch": True, "on_step": False}, {"x": [(1, 2.5), (3, 2.5)]}),
        ({"on_epoch": True}, {"x_step": [(0, 1.5), (1, 4.5), (2, 1.5), (3, 4.5)], "x_epoch": [(1, 2.5), (3, 2.5)]}),
        ({"logger": False}, {}),
    ],
)
def test_what_a_training_step_logs(options: dict[str, Any], expected: dict[str, Any]) -> None:
    _, recorder = fit(Logs("training_step", **options))
    names = {name for _, metrics in recorder.rows for name in metrics} - {"epoch"}
    assert {name: recorder.of(name) for name in names} == expected


@pytest.mark.parametrize("where", ["on_train_batch_start", "on_train_batch_end", "on_after_backward"])
def test_hooks_of_a_batch_log_per_step(where: str) -> None:
    _, recorder = fit(Logs(where))
    assert recorder.of("x") == [(0, 7.0), (1, 7.0), (2, 7.0), (3, 7.0)]


@pytest.mark.parametrize(
    ("where", "steps"),
    [
        ("on_train_start", [0]),
        ("on_train_epoch_start", [1, 3]),
        ("on_train_epoch_end", [1, 3]),
        ("on_validation_start", [1, 3]),
        ("on_validation_epoch_start", [1, 3]),
        ("on_validation_epoch_end", [1, 3]),
    ],
)
def test_hooks_outside_of_batches_log_per_epoch(where: str, steps: list[int]) -> None:
    trainer, recorder = fit(Logs(where), val=numbers(2))
    assert recorder.of("x") == [(step, 7.0) for step in steps]
    assert trainer.callback_metrics["x"] == 7.0


@pytest.mark.parametrize("where", ["on_fit_start", "on_train_end", "on_fit_end", "on_validation_end"])
def test_a_number_that_nobody_would_see_is_refused(where: str) -> None:
    with pytest.raises(TrainingError, match=r"log\('x'\) came where nothing collects it: log in steps, or in hooks"):
        fit(Logs(where), val=numbers(2))


def test_a_validation_step_logs_per_epoch_and_training_does_not_repeat_it() -> None:
    trainer, recorder = fit(Logs("validation_step", on_step=True, on_epoch=True), val=numbers(6, 4))
    epochs = [(step, metrics) for step, metrics in recorder.rows if "x_epoch" in metrics]
    assert epochs == [(1, {"epoch": 0, "x_epoch": 2.5}), (3, {"epoch": 1, "x_epoch": 2.5})]
    assert recorder.of("x_step") == [(0, 1.5), (1, 4.5), (2, 1.5), (3, 4.5)]  # by an axis of their own
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == {
        "x": 2.5, "x_epoch": 2.5, "x_step": 4.5,
    }  # fmt: skip


@pytest.mark.parametrize(("every", "steps"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (4, [3]), (50, []), (0, [])])
def test_every_nth_step_is_logged(every: int, steps: list[int]) -> None:
    _, recorder = fit(Logs("training_step"), numbers(3), log_every_n_steps=every)
    assert [step for step, _ in recorder.of("x")] == steps


@pytest.mark.parametrize(("reduce_fx", "expected"), [("mean", 2.5), ("sum", 1.5 + 4.5), ("min", 1.5), ("max", 4.5)])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_reductions(reduce_fx: Any, expected: float, as_tensor: bool) -> None:
    class Reduces(Scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            value = batch[0].mean()
            self.log("x", value if as_tensor else value.item(), reduce_fx=reduce_fx)

    assert bare_trainer().validate(Reduces(), numbers(6, 4)) == [{"x": expected}]


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.integers(1, 12))
def test_a_mean_is_the_mean_over_rows_whatever_the_batches(values: list[float], batch_size: int) -> None:
    metrics = MetricLog()
    with metrics.stage("validate"):
        for start in range(0, len(values), batch_size):
            batch = torch.tensor(values[start : start + batch_size], dtype=torch.float64)
            metrics.begin_batch((batch,))
            metrics.log("x", batch.mean())
        metrics.end_batch()
        found = metrics.reduce_epoch(lambda own: [own]).all["x"]
    assert found == pytest.approx(sum(values) / len(values), abs=1e-9)


@given(st.lists(st.lists(st.integers(-9, 9), max_size=5), min_size=1, max_size=4))
def test_workers_with_few_rows_or_none_count_for_the_rows_they_have(shards: list[list[int]]) -> None:
    """Each worker's share is reduced by itself; together they are what one process finds."""
    sent: list[Any] = []

    def gather(own: Any) -> list[Any]:
        sent.append(own)
        return list(sent)

    for shard in shards:
        metrics = MetricLog()
        with metrics.stage("validate"):
            for number in shard:
                metrics.begin_batch(torch.tensor([number]))
                for reduce_fx in REDUCTIONS:
                    metrics.log(reduce_fx, float(number), reduce_fx=reduce_fx)
            together = metrics.reduce_epoch(gather).all
    flat = [number for shard in shards for number in shard]
    expected = {"mean": sum(flat) / len(flat), "sum": sum(flat), "min": min(flat), "max": max(flat)} if flat else {}
    assert together == expected


def test_accuracy_over_a_short_last_batch_is_exact() -> None:
    """100 rows in batches of 32: the last one has four."""
    torch.manual_seed(0)
    module = Mlp()
    [found] = bare_trainer().validate(module, val_loader(100, 32))
    image, digit = rows(1400, 1500).tensors
    right = int((module(image).argmax(1) == digit).sum())
    assert found["val_acc"] == pytest.approx(right / 100, abs=1e-7)


def test_a_batch_size_of_its_own_weights_a_mean() -> None:
    class Weighs(Scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("x", float(batch_idx), batch_size=3 if batch_idx else 1)

    assert bare_trainer().validate(Weighs(), numbers(2)) == [{"x": 0.75}]


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.zeros(5, 2), 5),
        (torch.tensor(1.0), 1),
        ([torch.zeros(3), torch.zeros(4)], 3),
        ({"text": ["a", "b"], "x": {"y": torch.zeros(6, 1)}}, 6),
        (("a", (torch.zeros(2),)), 2),
        ("text", 1),
        (None, 1),
        ([], 1),
    ],
)
def test_rows_of_a_batch(batch: Any, count: int) -> None:
    assert rows_of(batch) == count


@pytest.mark.parametrize(
    ("value", "options", "error", "message"),
    [
        (torch.zeros(3), {}, TrainingError, r"log\('x'\) needs one number; got a tensor of shape \[3\]. Reduce it"),
        (torch.zeros(0), {}, TrainingError, r"a tensor of shape \[0\]"),
        ("0.5", {}, TrainingError, r"log\('x'\) needs a number or a tensor of one, .*; got str"),
        (None, {}, TrainingError, "got NoneType"),
        (1.0, {"on_step": False}, ConfigError, "on_step=False and on_epoch=False: set one of them"),
        (1.0, {"on_epoch": True, "reduce_fx": "median"}, ConfigError, "reduce_fx='median'; choose mean, sum, min"),
    ],
)
def test_what_cannot_be_logged(value: Any, options: Any, error: type[Exception], message: str) -> None:
    class Wrong(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", value, **options)
            return super().training_step(batch, batch_idx)

    with pytest.raises(error, match=message):
        fit(Wrong())


@pytest.mark.parametrize(
    "value", [2, True, 2.5, torch.tensor(3), torch.tensor([4.0]), torch.ones(1, 1, requires_grad=True)]
)
def test_what_can_be_logged(value: Any) -> None:
    class LogsAnything(Scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict({"x": value, "y": value}, on_step=True, on_epoch=True)

    [found] = bare_trainer().validate(LogsAnything(), numbers(2))
    assert found == dict.fromkeys(("x", "y", "x_epoch", "y_epoch"), float(torch.as_tensor(value).detach()))


def test_logging_keeps_no_graph() -> None:
    """A logged loss that kept its graph would keep every batch of the epoch in memory."""
    trainer, _ = fit(Logs("training_step", on_epoch=True))
    assert not any(value.requires_grad for value in trainer.callback_metrics.values())


def test_a_metric_that_is_not_finite_goes_through() -> None:
    trainer, recorder = fit(Scripted([math.nan, math.inf]), val=numbers(1))
    assert [repr(value) for _, value in recorder.of("score")] == ["nan", "inf"]
    assert finite_or_none(trainer.callback_metrics) == {"score": None}
    assert finite_or_none({"a": math.nan, "b": torch.tensor(1.5), "c": -math.inf}) == {"a": None, "b": 1.5, "c": None}


def test_the_progress_bar_shows_what_is_marked_for_it() -> None:
    class Shows(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("step", batch[0].mean(), prog_bar=True)
            self.log("both", batch[0].mean(), prog_bar=True, on_epoch=True)
            self.log("hidden", 1.0)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", 0.5, prog_bar=True)

    during: list[dict[str, float]] = []
    look = on_hook("on_train_batch_end", lambda trainer, *_: during.append(trainer.progress_bar_metrics))
    trainer, _ = fit(Shows(), val=numbers(1), callbacks=look, max_epochs=1)
    assert during == [{"step": 1.5, "both_step": 1.5}, {"step": 4.5, "both_step": 4.5}]
    assert trainer.progress_bar_metrics == {"step": 4.5, "both_step": 4.5, "both_epoch": 2.5, "val": 0.5}


def test_who_logs_a_step_or_an_epoch_chooses_the_axis(tmp_path: Path) -> None:
    class Axis(Scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict({"score": 1.0, "step": 1000.0 + self.current_epoch, "epoch": 5.0})

    _, recorder = fit(Axis(), val=numbers(1))
    assert recorder.rows == [(1000, {"score": 1.0, "epoch": 5.0}), (1001, {"score": 1.0, "epoch": 5.0})]
    new_trainer(tmp_path, max_epochs=1).fit(Axis(), numbers(1), numbers(1))
    new_trainer(tmp_path, max_epochs=2).fit(Axis(), numbers(1), numbers(1), ckpt_path="last")


def test_validation_and_training_may_log_under_one_name() -> None:
    """What callbacks and schedulers see at the end of an epoch is what came last: validation's."""

    class OneName(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("loss", 9.0)
            return super().training_step(batch, batch_idx)

    seen: list[float] = []
    look = on_hook("on_train_epoch_end", lambda trainer, _m: seen.append(float(trainer.callback_metrics["loss"])))
    trainer, _ = fit(OneName([0.25, 0.5], name="loss"), val=numbers(2), callbacks=look)
    assert seen == [0.25, 0.5]
    assert trainer.callback_metrics["loss"] == 0.5


def test_numbers_are_kept_in_double_precision() -> None:
    """A sum over many rows would lose some of them in single precision."""
    trainer, recorder = fit(Scripted([2.0**24 + 1, 1 / 3]), val=numbers(1))
    assert [value for _, value in recorder.of("score")] == [2.0**24 + 1, 1 / 3]
    assert trainer.callback_metrics["score"].item() == 1 / 3


# ---- beside Lightning ------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_lightning() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def logging_module(base: Any) -> Any:
    """A module that logs in every way that both know."""

    class LogsAll(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            value = batch[0].mean()
            self.log("plain", value)
            self.log("both", value, on_step=True, on_epoch=True, prog_bar=True)
            self.log("epoch_only", value, on_step=False, on_epoch=True, prog_bar=True)
            self.log("unlogged", value, on_epoch=True, on_step=True, logger=False)
            for reduce_fx in ("sum", "min", "max"):
                self.log(reduce_fx, value, on_step=False, on_epoch=True, reduce_fx=reduce_fx)
            return self.layer(batch[0][:, None]).mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict({"val": batch[0].mean(), "other": batch_idx}, prog_bar=True)

        def on_train_start(self) -> None:
            self.log("at_train_start", 1.0)

        def on_train_epoch_end(self) -> None:
            self.log("at_epoch_end", 2.0)

        def on_validation_epoch_end(self) -> None:
            self.log("at_validation_end", 3.0)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return LogsAll()


@pytest.mark.filterwarnings("ignore")  # Lightning's
@pytest.mark.usefixtures("quiet_lightning")
def test_names_and_values_are_those_of_lightning() -> None:
    data = DataLoader(TensorDataset(torch.arange(50.0)), 16)
    options: Any = {"max_epochs": 2, "num_sanity_val_steps": 1, "log_every_n_steps": 2}
    theirs = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    theirs.fit(logging_module(lightning.LightningModule), data, data)
    ours = bare_trainer(**options)
    ours.fit(logging_module(Module), data, data)
    for kind in ("callback_metrics", "logged_metrics", "progress_bar_metrics"):
        assert plain(getattr(ours, kind)) == plain(getattr(theirs, kind)), kind


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: pytest.approx(float(value)) for name, value in metrics.items()}
