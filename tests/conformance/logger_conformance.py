"""What every logger must do."""

from __future__ import annotations

import enum
import math
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import CsvReader, History
from training import Mlp, new_trainer, train_loader, val_loader

from shipline.errors import StoreError
from shipline.store import Store, open_store
from shipline.store.store import RemoteStore
from shipline.train import CSVLogger, Logger
from shipline.train.checkpoints.tree import decode_tree, encode_tree
from shipline.train.loggers.files import stored_files

SECRET = "hunter2"


class Color(enum.Enum):
    """A value that is no plain data."""

    RED = "red"


PARAMS: dict[str, Any] = {
    "lr": 0.1, "layers": 3, "bias": True, "name": "größe", "nothing": None, "nan": math.nan, "inf": math.inf,
    "long": "x" * 9000, "widths": [8, 16], "betas": (0.9, 0.999), "empty": {}, "nested": {"a": {"b": 1}, "c": [None]},
    "path": Path("a/b"), "color": Color.RED, "class": Path, "function": len, "tensor": torch.ones(2),
    "dtype": torch.float16, "odd name! %": 1, "api_key": SECRET, "data": f"s3://me:{SECRET}@bucket/x", 7: "seven",
}  # fmt: skip
ODD_NAMES = ["val/acc", "val acc %", "größe", "x.y-z", "loss/dataloader_idx_0", "loss", "=cmd", 'quote"d,', "a" * 200]


class LoggerConformance:
    """Inherit, and say how to make the logger and how to read back what it has written, with its library's reader."""

    #: By which the Trainer finds it.
    registered: str
    #: Whether numbers come back as they were, or as float32.
    exact = True

    def make(self, **options: Any) -> Logger:
        """Return a new logger."""
        raise NotImplementedError

    def read(self, run: Store) -> History:
        """Return what was logged below the run's directory, in order."""
        raise NotImplementedError

    def read_params(self, run: Store) -> dict[str, Any]:
        """Return the hyper-parameters."""
        raise NotImplementedError

    def stored(self, name: str) -> str:
        """Return how the logger spells the name of a metric."""
        return name

    # ---- what was logged is there ------------------------------------------------------------------------------------

    def test_what_was_logged_is_there(self, url: str) -> None:
        logger, run = self.make(), open_store(url)
        logger.open(run, None)
        for step in range(1, 4):
            logger.log_metrics({"loss": 1 / step, "epoch": 0}, step)
        logger.log_metrics({"acc": 1 / 3}, 3)
        logger.save()
        logger.log_metrics({"loss": 0.125}, 4)
        logger.finalize("success")
        expected = {
            "loss": [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.125)],
            "epoch": [(1, 0), (2, 0), (3, 0)],
            "acc": [(3, 1 / 3)],
        }  # fmt: skip
        self.same(self.read(run), expected)
        logger.log_metrics({"test": 7.0}, 5)  # a test, after the fit
        logger.save()
        logger.finalize("success")
        self.same(self.read(run), expected | {"test": [(5, 7.0)]})

    def test_metrics_that_are_not_finite_and_names_that_are_odd(self, store: Store) -> None:
        logger = self.make()
        logger.open(store, None)
        values = [math.nan, math.inf, -math.inf]
        for step, value in enumerate(values):
            logger.log_metrics({"loss": value}, step)
        logger.log_metrics({name: float(index) for index, name in enumerate(ODD_NAMES)}, 9)
        logger.finalize("failed")
        found = self.read(store)
        assert [repr(value) for _, value in found.pop(self.stored("loss"))[:3]] == ["nan", "inf", "-inf"]
        expected = {self.stored(n): [(9, float(i))] for i, n in enumerate(ODD_NAMES) if n != "loss"}
        self.same(found, expected)

    def test_a_prefix_begins_the_names(self, store: Store) -> None:
        logger = self.make(prefix="big")
        logger.open(store, None)
        logger.log_metrics({"loss": 0.5}, 1)
        logger.finalize("success")
        self.same(self.read(store), {"big-loss": [(1, 0.5)]})

    def test_hyper_parameters_of_every_kind(self, store: Store) -> None:
        logger = self.make()
        logger.open(store, None)
        logger.log_hyperparams(PARAMS)
        logger.log_hyperparams({"late": 5})
        logger.log_metrics({"loss": 0.5}, 1)
        logger.save()
        logger.finalize("success")
        found = self.read_params(store)
        assert float(found["lr"]) == pytest.approx(0.1)
        assert int(float(found["late"])) == 5
        assert "größe" in str(found["name"])
        assert "8" in str(found["widths"])
        for key in stored_files(store):
            assert SECRET.encode() not in store.read(key), key

    # ---- resumed -----------------------------------------------------------------------------------------------------

    def test_a_resumed_run_drops_nothing_and_repeats_nothing(self, store: Store) -> None:
        """What was logged after the checkpoint is logged again; validation counts its steps by itself."""
        first = self.make()
        first.open(store, None)
        first.log_hyperparams({"lr": 0.1})
        for step in (1, 2):
            first.log_metrics({"loss": float(step)}, step)
        for step in range(6):
            first.log_metrics({"val": step / 8}, step)
        structure, tensors = encode_tree(first.state_dict())  # what a checkpoint holds
        first.save()
        for step in (3, 4, 5):
            first.log_metrics({"loss": -1.0, "lost": -1.0}, step)
        first.save()
        first.finalize("failed")
        for end in (4, 6):  # and again, from the same checkpoint
            later = self.make()
            if state := decode_tree(structure, tensors):
                later.load_state_dict(state)
            later.open(store, 3)
            later.log_hyperparams({"lr": 0.1})
            for step in range(3, end):
                later.log_metrics({"loss": step + end / 8}, step)
            later.save()
            later.finalize("success")
            found = {name: points for name, points in self.read(store).items() if name != "hp_metric"}
            expected = [(1, 1.0), (2, 2.0), *((step, step + end / 8) for step in range(3, end))]
            self.same(found, {"loss": expected, "val": [(step, step / 8) for step in range(6)]})

    def test_a_run_that_begins_has_nothing_of_one_before(self, tmp_path: Path) -> None:
        logger = self.make()
        for name, value in (("one", 1.0), ("two", 2.0)):
            run = open_store(str(tmp_path / "runs" / name))
            logger.open(run, None)
            logger.log_metrics({"loss": value}, 1)
            logger.save()
            logger.finalize("success")
            self.same(self.read(run), {"loss": [(1, value)]})

    # ---- elsewhere, together, without a store ------------------------------------------------------------------------

    def test_it_travels_to_a_worker(self, store: Store) -> None:
        """Before it is opened, and while it is used."""
        logger = copied(self.make())
        logger.open(store, None)
        logger.log_metrics({"loss": 0.5}, 1)
        logger.save()
        assert type(copied(logger)) is type(logger)
        logger.finalize("success")
        self.same(self.read(store), {"loss": [(1, 0.5)]})

    def test_without_a_directory_nothing_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        logger = self.make()
        logger.open(None, None)
        logger.log_hyperparams({"lr": 0.1})
        logger.log_metrics({"loss": 0.5}, 1)
        logger.save()
        logger.finalize("success")
        assert list(tmp_path.iterdir()) == []

    def test_a_store_that_fails_loses_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Training goes on; `save` says so, and the writer tries it again."""
        store = open_store(f"memory://{uuid.uuid4().hex}/x/version_0")
        logger = self.make()
        logger.open(store, None)

        def fail(self: Store, key: str, data: Any) -> None:
            raise StoreError(f"Cannot write {self}/{key}: the store is down.")

        with monkeypatch.context() as down:
            down.setattr(RemoteStore, "write", fail)
            for step in range(250):
                logger.log_metrics({"loss": float(step)}, step)
            for _ in range(2):
                with pytest.raises(StoreError, match="the store is down"):
                    logger.save()
        logger.log_metrics({"loss": 250.0}, 250)
        logger.save()
        logger.finalize("success")
        assert [step for step, _ in self.read(store)["loss"]] == list(range(251))

    def test_several_side_by_side_in_a_run_that_is_resumed(self, tmp_path: Path) -> None:
        loggers: Callable[[], list[Any]] = lambda: [self.registered, "csv"]  # noqa: E731
        options: dict[str, Any] = {"name": "digits", "log_every_n_steps": 2}
        for epochs in (1, 3):
            trainer = new_trainer(tmp_path, max_epochs=epochs, logger=loggers(), **options)
            run = trainer.fit(Mlp(), train_loader(96), val_loader(32), ckpt_path="last" if epochs > 1 else None)
        store = open_store(str(run.url))
        found = {name: points for name, points in self.read(store).items() if name != "hp_metric"}
        by_csv = CsvReader().read(store)
        assert [step for step, _ in by_csv["val_loss"]] == [2, 5, 8], by_csv
        if "epoch" in found:  # it comes with every call: a step that trains and validates has it twice, and one row
            found["epoch"] = list(dict.fromkeys(found["epoch"]))
        self.same(found, {self.stored(name): points for name, points in by_csv.items()})
        assert float(self.read_params(store)["hidden"]) == 32

    # ---- helpers -----------------------------------------------------------------------------------------------------

    @pytest.fixture(params=["local", "memory"])
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
        """The directory of a run, on this machine and elsewhere."""
        root = str(tmp_path / "runs") if request.param == "local" else f"memory://{uuid.uuid4().hex}/runs"
        return open_store(f"{root}/digits/version_0")

    def same(self, found: History, expected: History) -> None:
        """Fail unless both hold the same steps and values."""
        assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
        for name, points in expected.items():
            steps, values = zip(*points, strict=True)
            assert tuple(step for step, _ in found[name]) == steps, (name, found[name], points)
            close = pytest.approx(values, rel=0 if self.exact else 1e-6)
            assert [value for _, value in found[name]] == close, (name, found[name], points)


def copied(logger: Logger) -> Logger:
    """The logger as another process gets it."""
    found: Logger = pickle.loads(pickle.dumps(logger))  # noqa: S301
    return found


def made_csv(**options: Any) -> CSVLogger:
    """A CSVLogger that writes often enough for a small test."""
    return CSVLogger(flush_logs_every_n_steps=2, **options)
