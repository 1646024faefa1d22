"""The CSV file, and loggers of a user's own."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest
from training import Recorder, Scripted, metric_rows, new_trainer, numbers

import shipline as sl
from shipline.errors import ConfigError
from shipline.store import Store, open_store
from shipline.train import CSVLogger, Logger, TensorBoardLogger


def text(url: str) -> str:
    return open_store(url).read("metrics.csv").decode()


def test_one_row_a_step_and_one_column_a_metric(url: str) -> None:
    logger = CSVLogger()
    logger.open(open_store(url), None)
    logger.log_metrics({"loss": 0.5, "epoch": 0}, 1)
    logger.log_metrics({"loss": 0.25, "epoch": 0}, 2)
    logger.log_metrics({"acc": 1.0, "epoch": 0}, 2)
    logger.save()
    assert text(url) == "step,acc,epoch,loss\n1,,0,0.5\n2,1.0,0,0.25\n"


def test_numbers_are_written_exactly(tmp_path: Path) -> None:
    values = {"third": 1 / 3, "tiny": 5e-324, "huge": 1e308, "nan": math.nan, "inf": -math.inf, "comma,": 1.0}
    logger = CSVLogger()
    logger.open(open_store(str(tmp_path)), None)
    logger.log_metrics(values, 1)
    logger.save()
    [row] = csv.DictReader(io.StringIO(text(str(tmp_path))))
    assert all(repr(float(row[name])) == repr(value) for name, value in values.items())


def test_a_metric_that_comes_later_gets_its_column(tmp_path: Path) -> None:
    logger = CSVLogger()
    logger.open(open_store(str(tmp_path)), None)
    for step, name in enumerate("ba"):
        logger.log_metrics({name: float(step)}, step)
        logger.save()
    assert text(str(tmp_path)) == "step,a,b\n0,,0.0\n1,1.0,\n"


@pytest.mark.parametrize(("resumed_step", "steps"), [(None, ["3"]), (0, ["3"]), (2, ["1", "3"]), (3, ["1", "2", "3"])])
@pytest.mark.parametrize("with_state", [False, True])
def test_rows_before_the_resumed_step_are_kept(
    url: str, resumed_step: int | None, steps: list[str], with_state: bool
) -> None:
    """With a state of the logger they are counted, so that an axis of the user's own is kept, too."""
    first = CSVLogger()
    first.open(open_store(url), None)
    for step in (1, 2):
        first.log_metrics({"a": float(step), "epoch": 0}, step)
    first.log_metrics({"b": 5.0}, 2)
    first.save()
    later = CSVLogger()
    if with_state and resumed_step is not None:
        later.load_state_dict({"rows": len(steps) - 1})
        resumed_step = 0
    later.open(open_store(url), resumed_step)
    later.log_metrics({"a": 3.0}, 3)
    later.save()
    rows = metric_rows(url)
    assert [row["step"] for row in rows] == steps
    if "2" in steps:
        assert rows[1] == {"step": "2", "a": "2.0", "b": "5.0", "epoch": "0"}


def test_a_resumed_run_without_a_file_begins_one(tmp_path: Path) -> None:
    logger = CSVLogger()
    logger.open(open_store(str(tmp_path)), 7)
    logger.log_metrics({"a": 1.0}, 8)
    logger.save()
    assert text(str(tmp_path)) == "step,a\n8,1.0\n"


class Counting:
    """A store that counts what is written."""

    def __init__(self) -> None:
        self.writes: list[int] = []

    def write(self, _key: str, data: bytes) -> None:
        self.writes.append(data.count(b"\n") - 1)


def test_the_file_is_written_every_so_many_rows_and_at_the_end() -> None:
    store: Any = Counting()
    logger = CSVLogger(flush_logs_every_n_steps=3)
    logger.open(store, None)
    for step in range(7):
        logger.log_metrics({"a": 1.0}, step)
    assert store.writes == [3, 6]
    logger.save()
    logger.save()
    assert store.writes == [3, 6, 7]


def test_a_logger_that_was_never_opened_writes_nothing() -> None:
    logger = CSVLogger()
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()


def test_a_run_writes_its_metrics(url: str) -> None:
    run = new_trainer(url, max_epochs=2).fit(Scripted([1.0, 0.5]), numbers(3), numbers(1))
    assert text(str(run.url)) == "step,epoch,score\n2,0,1.0\n5,1,0.5\n"


def test_a_run_that_fails_keeps_the_metrics_it_had(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        new_trainer(tmp_path, max_epochs=2).fit(Scripted([1.0]), numbers(3), numbers(1))
    assert metric_rows(str(tmp_path / "scripted" / "version_0")) == [{"step": "2", "epoch": "0", "score": "1.0"}]


class Told(Logger):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def open(self, run: Store | None, resumed_step: int | None) -> None:
        assert run is not None
        self.events.append(("open", run.url, resumed_step))

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.events.append(("hyperparams", params["name"]))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.events.append(("metrics", metrics, step))

    def save(self) -> None:
        self.events.append("save")

    def finalize(self, status: str) -> None:
        self.events.append(status)


def test_what_a_logger_is_told(tmp_path: Path) -> None:
    told, also = Told(), Recorder()
    run = new_trainer(tmp_path, max_epochs=1, logger=[told, also]).fit(Scripted([0.5]), numbers(2), numbers(1))
    metrics = {"score": 0.5, "epoch": 0}
    logged = [("open", run.url, None), ("hyperparams", "score"), ("metrics", metrics, 1)]
    assert told.events == [*logged, "save", "save", "success"]  # before the checkpoint, and at the end
    assert also.rows == [(1, metrics)]
    assert "metrics.csv" not in open_store(str(run.url)).list()

    again = Told()
    trainer = new_trainer(tmp_path, max_epochs=2, logger=again)
    trainer.fit(Scripted([0.5, 0.5]), numbers(2), numbers(1), ckpt_path="last")
    assert again.events[0] == ("open", run.url, 2)


def test_without_loggers_and_checkpoints_there_is_no_run_directory(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False).fit(Scripted(), numbers(1))
    assert run.url is None
    assert list(tmp_path.iterdir()) == []
    assert [type(logger) for logger in sl.Trainer().loggers] == [CSVLogger]


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_what_a_logger_calls_itself(tmp_path: Path, kind: str) -> None:
    """As in Lightning: name, version and directory are those of the run, or what was given."""
    make: Any = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[kind]
    within, apart, named = make(), make(str(tmp_path / "logs")), make(str(tmp_path / "logs"), "mine", 7)
    assert (within.name, within.version, within.log_dir, within.save_dir) == (None, None, None, None)
    trainer = new_trainer(tmp_path, max_epochs=1, logger=[within, apart, named])
    run = trainer.fit(Scripted([1.0]), numbers(1), numbers(1))
    logs = str(tmp_path / "logs")
    assert (within.name, within.version, within.log_dir, within.save_dir) == ("scripted", 0, run.url, None)
    assert (apart.name, apart.version, apart.log_dir, apart.save_dir) == (
        "scripted", 0, f"{logs}/scripted/version_0", logs,
    )  # fmt: skip
    assert (named.name, named.version, named.log_dir) == ("mine", 7, f"{logs}/mine/version_7")
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["mine", "scripted"]
    with pytest.raises(ConfigError, match="'a/b' is no experiment name"):
        make(logs, "a/b")
