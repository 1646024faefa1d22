"""Loggers at work in real runs: several at once, resumed, failing, given by name; and Lightning's own."""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from logged import CsvReader, MLflowReader, TensorBoardReader, WandbReader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import Mlp, Recorder, Scripted, metric_rows, new_trainer, numbers, on_hook, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError, MissingExtraError, StoreError, UnknownNameError
from shipline.runs import open_run
from shipline.store import open_store
from shipline.store.store import LocalStore
from shipline.train import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from shipline.train.lightning import ForeignLogger

READERS: dict[str, Any] = {
    "csv": CsvReader(), "tensorboard": TensorBoardReader(), "mlflow": MLflowReader(), "wandb": WandbReader()
}  # fmt: skip


class Odd(Mlp):
    """Logs what is not finite, and names with slashes; learns the same whatever happens."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train/nan", math.nan)
        self.log("train/inf", math.inf)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val/count", float(len(batch[0])), reduce_fx="sum")
        super().validation_step(batch, batch_idx)


def fit_odd(root: Path, ckpt_path: str | None = None, *callbacks: sl.Callback) -> sl.Run:
    sl.seed_everything(1)
    saves = sl.ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)
    trainer = new_trainer(
        root, max_epochs=3, log_every_n_steps=1, logger=list(READERS), name="odd", callbacks=[saves, *callbacks]
    )
    return trainer.fit(Odd(), train_loader(128), val_loader(32), ckpt_path=ckpt_path)


def read_all(run: Path) -> dict[str, dict[str, list[tuple[int, str]]]]:
    """What each library reads of the run; names as MLflow has them in files, and numbers as text, since NaN != NaN."""
    found: dict[str, Any] = {}
    for name, reader in READERS.items():
        history = reader.read(open_store(str(run)))
        found[name] = {
            key.replace("/", "."): [(step, f"{value:.6g}") for step, value in points]
            for key, points in history.items()
            if key not in ("hp_metric", "epoch")
        }
    return found


def fail_at(step: int) -> sl.Callback:
    def fail(trainer: sl.Trainer, *_: Any) -> None:
        if trainer.global_step == step:
            raise ZeroDivisionError(f"at step {step}")

    return on_hook("on_train_batch_end", fail)


def test_all_at_once_in_a_run_that_fails_and_is_resumed(tmp_path: Path, wandb_offline: None) -> None:
    """Two steps after the checkpoint it fails, with these steps logged: none is there twice, and none is missing."""
    whole = fit_odd(tmp_path / "whole")
    expected = read_all(Path(str(whole.url)))
    assert expected["csv"].keys() == {"train.nan", "train.inf", "train_loss", "val.count", "val_loss", "val_acc"}
    assert expected["csv"]["train.nan"] == [(step, "nan") for step in range(12)]
    assert expected["csv"]["val.count"] == [(step, "32") for step in (3, 7, 11)]
    assert all(each == expected["csv"] for each in expected.values())

    with pytest.raises(ZeroDivisionError):
        fit_odd(tmp_path / "parts", None, fail_at(8))
    run = tmp_path / "parts" / "odd" / "version_0"
    assert open_run(str(run)).state == "failed"
    assert fit_odd(tmp_path / "parts", "last").url == str(run)
    assert open_run(str(run)).state == "finished"
    assert read_all(run) == expected


# ---- what a Trainer is given -----------------------------------------------------------------------------------------


def test_which_loggers_a_trainer_has(monkeypatch: pytest.MonkeyPatch) -> None:
    made = CSVLogger()
    assert [type(each) for each in sl.Trainer().loggers] == [CSVLogger]
    assert [type(each) for each in sl.Trainer(logger=True).loggers] == [CSVLogger]
    assert sl.Trainer(logger=False).loggers == sl.Trainer(logger=[]).loggers == []
    assert sl.Trainer(logger=False).logger is None
    trainer = sl.Trainer(logger=[made, "tensorboard", "MLFlowLogger", "wandb"])
    assert [type(each) for each in trainer.loggers] == [CSVLogger, TensorBoardLogger, MLFlowLogger, WandbLogger]
    assert trainer.logger is made
    with pytest.raises(UnknownNameError, match=r"Unknown logger 'tensorbord'\. Did you mean 'tensorboard'"):
        sl.Trainer(logger="tensorbord")
    with pytest.raises(ConfigError, match=r"logger has a int, which is no shipline\.train\.Logger"):
        sl.Trainer(logger=[3])  # type: ignore[list-item]
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'shipline\[loggers\]'"):
        sl.Trainer(logger="wandb")


# ---- a logger that fails ---------------------------------------------------------------------------------------------


class Fails(Logger):
    """Raises at one call."""

    def __init__(self, at: str) -> None:
        self.at = at

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._fail("log_metrics")

    def save(self) -> None:
        self._fail("save")

    def finalize(self, status: str) -> None:
        self._fail("finalize")

    def _fail(self, call: str) -> None:
        if call == self.at:
            raise OSError(f"{call}: the disk is on fire")


class Ends(Recorder):
    """Remembers how it ended."""

    status = ""

    def finalize(self, status: str) -> None:
        self.status = status


@pytest.mark.parametrize("at", ["log_metrics", "save", "finalize"])
def test_an_error_of_a_logger_ends_the_run_and_the_others_are_closed(tmp_path: Path, at: str) -> None:
    other = Ends()
    trainer = new_trainer(tmp_path, max_epochs=2, log_every_n_steps=1, logger=[Fails(at), other, CSVLogger()])
    with pytest.raises(OSError, match=f"{at}: the disk is on fire"):
        trainer.fit(Mlp(), train_loader(96), val_loader(32))
    assert other.status == ("success" if at == "finalize" else "failed")
    record = open_run(str(tmp_path / "mlp" / "version_0")).record
    assert (record.state, record.error) == ("failed", f"OSError: {at}: the disk is on fire")
    assert (tmp_path / "mlp" / "version_0" / "metrics.csv").exists() == (at != "log_metrics")


def test_a_store_that_refuses_metrics_for_a_while_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, refused = LocalStore.write, []

    def sometimes(self: LocalStore, key: str, data: Any) -> None:
        if key == "metrics.csv" and len(refused) < 3:
            refused.append(key)
            raise StoreError(f"Cannot write {self}/{key}: the store is down.")
        write(self, key, data)

    monkeypatch.setattr(LocalStore, "write", sometimes)
    trainer = new_trainer(
        tmp_path, max_epochs=1, log_every_n_steps=1, logger=CSVLogger(flush_logs_every_n_steps=2),
        enable_checkpointing=False,
    )  # fmt: skip
    run = trainer.fit(Mlp(), train_loader(256), val_loader(32))
    assert len(refused) == 3
    assert [int(row["step"]) for row in metric_rows(str(run.url))] == list(range(8))
    assert caplog.text.count("Metrics are kept in memory until the store takes them.") == 1


def test_a_store_that_never_takes_metrics_fails_the_run_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStore.write

    def never(self: LocalStore, key: str, data: Any) -> None:
        if key == "metrics.csv":
            raise StoreError(f"Cannot write {self}/{key}: the store is down.")
        write(self, key, data)

    monkeypatch.setattr(LocalStore, "write", never)
    trainer = new_trainer(tmp_path, max_epochs=1, log_every_n_steps=1, enable_checkpointing=False)
    with pytest.raises(StoreError, match="the store is down"):
        trainer.fit(Mlp(), train_loader(64), val_loader(32))
    assert trainer.global_step == 2


# ---- other stages ----------------------------------------------------------------------------------------------------


def test_what_a_test_logs_after_a_fit_is_in_the_same_file(tmp_path: Path) -> None:
    class Tested(Scripted):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("tested", 7.0)

    trainer = new_trainer(tmp_path, max_epochs=1, logger=["csv", "tensorboard"])
    run = trainer.fit(Tested([0.5]), numbers(3), numbers(1))
    trainer.test(dataloaders=numbers(1))
    assert metric_rows(str(run.url))[-1]["tested"] == "7.0"
    assert [value for _, value in TensorBoardReader().read(open_store(str(run.url)))["tested"]] == [7.0]


def test_a_plain_loop_has_the_records_and_loggers_of_a_fit(tmp_path: Path) -> None:
    ends = Ends()

    def work(loop: Any) -> None:
        net = loop.prepare(torch.nn.Linear(1, 1))
        for epoch in loop.epochs(2):
            loop.log({"loss": net.weight.sum() * 0 + epoch}, step=epoch)
            loop.save()
        raise ZeroDivisionError("late")

    with pytest.raises(ZeroDivisionError):
        new_trainer(tmp_path, logger=["csv", ends]).run(work)
    found = open_run(str(tmp_path / "work" / "version_0"))
    assert (found.state, found.record.error, found.record.epochs) == ("failed", "ZeroDivisionError: late", 2)
    assert found.record.module.endswith("work")
    assert found.history() == {"loss": [(0, 0.0), (1, 1.0)]}
    assert ends.status == "failed"
    assert json.loads((tmp_path / "work" / "version_0" / "environment.json").read_bytes())["packages"]["torch"]


# ---- Lightning's own -------------------------------------------------------------------------------------------------


def lightning_loggers(root: Path) -> list[Any]:
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    return [CSVLogger(root, flush_logs_every_n_steps=2), TensorBoardLogger(root / "board")]


def boring() -> tuple[Any, Any, Any]:
    """A LightningModule that logs by step, by epoch and in validation, and writes to its logger by itself."""
    from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset
    from pytorch_lightning.loggers import CSVLogger

    class Logs(BoringModel):
        def __init__(self, rate: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)["loss"]
            self.log("train/loss", loss, on_step=True, on_epoch=True)
            if batch_idx == 1:
                assert isinstance(self.logger, CSVLogger)
                self.logger.log_metrics({"own": 3.0}, step=1)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("val/loss", super().validation_step(batch, batch_idx)["x"])

    torch.manual_seed(3)
    module = Logs()
    loaders = [torch.utils.data.DataLoader(RandomDataset(32, 12), batch_size=2) for _ in range(2)]
    return module, *loaders


def fit_boring(trainer: Any) -> None:
    module, train, val = boring()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, of few workers
        trainer.fit(module, train, val)


Points = dict[tuple[str, str, int], float]


def read_lightning(root: Path) -> tuple[Points, str]:
    """Every value that a CSVLogger and a TensorBoardLogger wrote, and the hyper-parameters."""
    [file] = root.glob("lightning_logs/*/metrics.csv")
    [board] = root.glob("board/lightning_logs/*")
    events = EventAccumulator(str(board)).Reload()
    points = {
        (name, row["step"], number): float(text)
        for number, row in enumerate(csv.DictReader(io.StringIO(file.read_text())))
        for name, text in row.items()
        if text
    }
    for tag in events.Tags()["scalars"]:
        points |= {(tag, "board", event.step): event.value for event in events.Scalars(tag)}
    return points, (board / "hparams.yaml").read_text()


def test_lightnings_loggers_write_here_what_they_write_there(tmp_path: Path) -> None:
    ours = new_trainer(
        tmp_path / "runs", max_epochs=2, log_every_n_steps=2, logger=lightning_loggers(tmp_path / "ours"),
        num_sanity_val_steps=0,
    )  # fmt: skip
    fit_boring(ours)
    theirs = lightning.Trainer(
        max_epochs=2, log_every_n_steps=2, logger=lightning_loggers(tmp_path / "theirs"), accelerator="cpu",
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    fit_boring(theirs)
    (points, hparams), (expected, expected_hparams) = (read_lightning(tmp_path / name) for name in ("ours", "theirs"))
    assert {name for name, *_ in expected} > {"train/loss_step", "train/loss_epoch", "val/loss", "own", "epoch", "step"}
    assert points == pytest.approx(expected, rel=1e-6)  # our sums over an epoch are of doubles
    assert list(points) == list(expected)
    assert hparams == expected_hparams == "rate: 0.1\n"
    assert [each.log_dir for each in ours.loggers] == [
        each.log_dir.replace("theirs", "ours") for each in theirs.loggers
    ]  # fmt: skip
    assert (ours.logger.name, ours.logger.version) == ("lightning_logs", 0)


def test_lightnings_loggers_travel_and_upload_no_checkpoints(tmp_path: Path) -> None:
    from pytorch_lightning.loggers import CSVLogger, WandbLogger

    [logger] = sl.Trainer(logger=CSVLogger(tmp_path, name="x")).loggers
    assert isinstance(logger, CSVLogger)
    again = pickle.loads(pickle.dumps(logger))  # noqa: S301
    assert type(again) is ForeignLogger
    assert (again.name, again.save_dir) == ("x", str(tmp_path))
    with pytest.raises(ConfigError, match="WandbLogger has log_model='all'"):
        sl.Trainer(logger=WandbLogger(log_model="all", save_dir=tmp_path))
