"""Settings that change how a run computes, each compared with PyTorch Lightning's."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from torch import nn
from training import bare_trainer, numbers

import shipline as sl
from shipline.errors import ConfigError
from shipline.train.accelerators import Accelerator
from shipline.train.strategies import Strategy

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"

# Lightning warns of few data workers, of no logger, of its own future.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lightning leaves on what it switches on."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    monkeypatch.setenv(CUBLAS, "unset")
    monkeypatch.delenv(CUBLAS)
    flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(flags[0])
    torch.backends.cudnn.benchmark = flags[1]
    torch.autograd.set_detect_anomaly(False)
    logger.setLevel(level)


def theirs(**options: Any) -> Any:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(accelerator="cpu", **(quiet | {"enable_model_summary": False} | options))


def both(**options: Any) -> list[tuple[Any, Any]]:
    """Lightning's Trainer and ours, and the class to derive modules from."""
    return [
        (theirs(**options), lightning.LightningModule),
        (bare_trainer(**options), sl.Module),
    ]


def watching(base: Any, look: Any) -> Any:
    """A module that calls a function in its steps."""

    class Watching(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.norm = nn.BatchNorm1d(1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            look("train")
            return (self.weight * batch[0]).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            look("val")
            self.log("value", 1.0)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Watching()


def test_detect_anomaly_names_the_operation() -> None:
    class Nan:
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self.weight - 1).sqrt().mul(0).sum()  # type: ignore[attr-defined]

    for trainer, base in both(max_epochs=1, detect_anomaly=True):
        module = type("Module", (Nan, type(watching(base, None))), {})()
        with pytest.raises(RuntimeError, match="Function 'SqrtBackward0' returned nan values in its 0th output"):
            trainer.fit(module, numbers(2))
    assert not torch.is_anomaly_enabled()


@pytest.mark.parametrize(
    "options",
    [
        {}, {"deterministic": True}, {"deterministic": "warn"}, {"deterministic": False}, {"benchmark": True},
        {"benchmark": False}, {"deterministic": True, "benchmark": True},
    ],
)  # fmt: skip
def test_deterministic_and_benchmark_switch_on_what_lightnings_do(options: dict[str, Any]) -> None:
    def state() -> tuple[Any, ...]:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
        return (*flags, warn_only, os.environ.get(CUBLAS))

    found = []
    for make, base in ((bare_trainer, sl.Module), (theirs, lightning.LightningModule)):
        before, seen = state(), []
        make(max_steps=1, **options).fit(watching(base, lambda _stage, seen=seen: seen.append(state())), numbers(1))
        found.append(seen)
        assert base is lightning.LightningModule or state() == before
    assert found[0] == found[1]


def test_an_operation_that_is_not_deterministic() -> None:
    """Of those on the CPU."""

    def put(_stage: str) -> None:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))

    def fit(deterministic: Any) -> None:
        bare_trainer(max_steps=1, deterministic=deterministic).fit(watching(sl.Module, put), numbers(1))

    message = "put_ does not have a deterministic implementation"
    with pytest.raises(RuntimeError, match=message):
        fit(True)
    with pytest.warns(UserWarning, match=message):
        fit("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(None)
    assert not [warning for warning in caught if message in str(warning.message)]


@pytest.mark.parametrize("inference_mode", [True, False])
def test_inference_mode_is_for_evaluation_outside_of_a_fit(inference_mode: bool) -> None:
    found = []
    for trainer, base in both(max_epochs=1, inference_mode=inference_mode, num_sanity_val_steps=1):
        seen: list[Any] = []
        module = watching(
            base,
            lambda stage, seen=seen: seen.append((stage, torch.is_inference_mode_enabled(), torch.is_grad_enabled())),
        )
        trainer.fit(module, numbers(1), numbers(1))
        trainer.validate(module, numbers(1), verbose=False)
        found.append(seen)
    assert found[0] == found[1]
    assert found[0] == [("val", False, False), ("train", False, True), ("val", False, False),
                        ("val", inference_mode, False)]  # fmt: skip


# ---- barebones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"logger": True}, {"enable_checkpointing": True}, {"enable_progress_bar": True}, {"enable_model_summary": True},
        {"log_every_n_steps": 5}, {"num_sanity_val_steps": 1}, {"fast_dev_run": True}, {"detect_anomaly": True},
        {"profiler": "simple"},
    ],
)  # fmt: skip
def test_barebones_refuses_what_costs_time(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="barebones"):
        lightning.Trainer(barebones=True, **options)
    [(name, value)] = options.items()
    with pytest.raises(ConfigError, match=f"barebones=True, which leaves out {name}; got {name}={value!r}"):
        sl.Trainer(barebones=True, **options)


def test_barebones_keeps_only_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    """What is logged is dropped, and nothing is written."""
    found: list[Any] = []
    for trainer, base in (
        (lightning.Trainer(accelerator="cpu", barebones=True, max_epochs=1), lightning.LightningModule),
        (sl.Trainer(accelerator="cpu", barebones=True, max_epochs=1), sl.Module),
    ):
        seen: list[str] = []
        module = watching(base, seen.append)
        capsys.readouterr()
        trainer.fit(module, numbers(2), numbers(1))
        validated = trainer.validate(module, numbers(1), verbose=False)
        found.append((seen, validated, trainer.loggers, trainer.checkpoint_callbacks, trainer.num_sanity_val_steps))
        assert dict(trainer.callback_metrics) == {}
    assert found[0] == found[1] == (["train", "train", "val", "val"], [{}], [], [], 0)
    assert capsys.readouterr().out == ""


# ---- loaders and time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [0, 1, 2, 3])
@pytest.mark.parametrize("check_val", [1, 2, 3])
def test_loaders_are_asked_for_again_every_n_epochs(every: int, check_val: int) -> None:
    """In the epochs in which Lightning asks."""
    found = []
    for base, data_base in ((lightning.LightningModule, lightning.LightningDataModule), (sl.Module, sl.DataModule)):
        asked: list[Any] = []

        class Data(data_base):  # type: ignore[misc, valid-type]
            def train_dataloader(self, asked: list[Any] = asked) -> Any:
                asked.append(("train", self.trainer.current_epoch))
                return numbers(1)

            def val_dataloader(self, asked: list[Any] = asked) -> Any:
                asked.append(("val", self.trainer.current_epoch))
                return numbers(1)

        options = {"max_epochs": 5, "reload_dataloaders_every_n_epochs": every, "check_val_every_n_epoch": check_val}
        make = theirs if base is lightning.LightningModule else bare_trainer
        make(num_sanity_val_steps=0, **options).fit(watching(base, lambda _stage: None), datamodule=Data())
        found.append(asked)
    assert found[0] == found[1]


class Clock:
    """Goes on by a second with each training step."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.mark.parametrize("max_time", ["00:00:00:05", timedelta(seconds=5), {"seconds": 5}])
def test_max_time_stops_where_lightnings_does(max_time: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for module, make, base in (
        ("pytorch_lightning.callbacks.timer.time", theirs, lightning.LightningModule),
        ("shipline.train.callbacks.timer.time", bare_trainer, sl.Module),
    ):
        clock = Clock()
        monkeypatch.setattr(module, clock)

        def tick(_stage: str, clock: Clock = clock) -> None:
            clock.now += 1

        trainer = make(max_time=max_time, max_epochs=9)
        trainer.fit(watching(base, tick), numbers(4))
        found.append((trainer.global_step, trainer.current_epoch))
    assert found[0] == found[1]
    assert found[1][0] == 5


# ---- batch norm over all workers -------------------------------------------------------------------------------------


class Meta(Accelerator):
    """Stands for one with a GPU: its tensors have no values."""

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def device(self, local_rank: int) -> torch.device:
        return torch.device("meta")


class Two(Strategy):
    """Two workers that agree on everything."""

    world_size = 2

    def gather(self, value: Any) -> list[Any]:
        return [value, value]


@pytest.mark.parametrize(("strategy", "kind"), [(Two(), nn.SyncBatchNorm), (Strategy(), nn.BatchNorm1d)])
def test_sync_batchnorm_is_for_several_workers_on_accelerators(strategy: Strategy, kind: type) -> None:
    trainer = bare_trainer(max_epochs=0, sync_batchnorm=True, accelerator=Meta("meta"), strategy=strategy)
    module = watching(sl.Module, None)
    trainer.fit(module, numbers(2))
    assert type(module.norm) is kind


def test_sync_batchnorm_is_refused_on_the_cpu() -> None:
    with pytest.raises(ConfigError, match="sync_batchnorm=True, which PyTorch can do on accelerators only"):
        bare_trainer(max_epochs=0, sync_batchnorm=True, strategy=Two()).fit(watching(sl.Module, None), numbers(2))
