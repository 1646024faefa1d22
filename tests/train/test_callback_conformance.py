"""Every callback does what every callback must."""

from __future__ import annotations

import itertools
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_conformance import CallbackConformance

from shipline.errors import ConfigError
from shipline.train import (
    BasePredictionWriter,
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelSummary,
    OnExceptionCheckpoint,
    ProgressBar,
    RichProgressBar,
    SpikeDetection,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
)


class TestLearningRateMonitor(CallbackConformance):
    name = "LearningRateMonitor"

    def make(self, root: Path) -> Callback:
        return LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)


class TestDeviceStatsMonitor(CallbackConformance):
    name = "DeviceStatsMonitor"

    def make(self, root: Path) -> Callback:
        return DeviceStatsMonitor(cpu_stats=True)


class TestModelSummary(CallbackConformance):
    name = "ModelSummary"

    def make(self, root: Path) -> Callback:
        return ModelSummary(max_depth=2)


class TestProgressBar(CallbackConformance):
    name = "ProgressBar"

    def make(self, root: Path) -> Callback:
        return ProgressBar()


class TestRichProgressBar(CallbackConformance):
    name = "RichProgressBar"

    def make(self, root: Path) -> Callback:
        return RichProgressBar(refresh_rate=5, leave=True)


class TestTQDMProgressBar(CallbackConformance):
    name = "TQDMProgressBar"

    def make(self, root: Path) -> Callback:
        return TQDMProgressBar(refresh_rate=2, process_position=1, leave=True)


class TestTimer(CallbackConformance):
    name = "Timer"

    @pytest.fixture(autouse=True)
    def ticking_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each look at the clock is a second after the one before."""
        clock = itertools.count()
        monkeypatch.setattr("shipline.train.callbacks.timer.time", types.SimpleNamespace(monotonic=lambda: next(clock)))

    def make(self, root: Path) -> Callback:
        return Timer({"hours": 1}, interval="epoch", verbose=False)

    def state(self, callback: Callback) -> dict[str, Any]:
        """To save a state is to look at the clock, too."""
        return {"keys": list(callback.state_dict()["time_elapsed"])}


def began(*_arguments: Any) -> None:
    """A function that can be pickled."""


class TestLambdaCallback(CallbackConformance):
    name = "LambdaCallback"

    def make(self, root: Path) -> Callback:
        return LambdaCallback(on_train_start=began, setup=None)

    def test_refuses_options_that_it_does_not_have(self, tmp_path: Path) -> None:
        match = r"LambdaCallback has no option 'on_train_strat'. Did you mean 'on_train_start'\? Known: setup, teardown"
        with pytest.raises(ConfigError, match=match):
            LambdaCallback(on_train_strat=began)
        with pytest.raises(ConfigError, match="LambdaCallback has on_train_end=3; set a function"):
            LambdaCallback(on_train_end=3)  # type: ignore[arg-type]

    def test_calls_its_functions_with_what_the_hooks_get(self, tmp_path: Path) -> None:
        calls: list[tuple[Any, ...]] = []
        callback = LambdaCallback(
            on_train_batch_end=lambda *arguments: calls.append(arguments), on_train_epoch_end=began
        )
        trainer = self.fit(tmp_path, callback, max_epochs=1)
        assert [(call[0], call[1], call[4]) for call in calls] == [(trainer, trainer.module, i) for i in range(3)]
        assert all(set(call[2]) == {"loss"} and len(call) == 5 for call in calls)


class Keeps(BasePredictionWriter):
    """A writer that writes to a list."""

    def __init__(self, write_interval: Any = "batch") -> None:
        super().__init__(write_interval)
        self.written: list[Any] = []

    def write_on_batch_end(self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, *_: Any) -> None:
        self.written.append(batch_indices)

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.written.append(batch_indices)


class TestBasePredictionWriter(CallbackConformance):
    name = None

    def make(self, root: Path) -> Callback:
        return Keeps("batch_and_epoch")


class TestOnExceptionCheckpoint(CallbackConformance):
    name = "OnExceptionCheckpoint"

    def make(self, root: Path) -> Callback:
        return OnExceptionCheckpoint(str(root), filename="failed")


class TestGradientAccumulationScheduler(CallbackConformance):
    name = "GradientAccumulationScheduler"
    changes_weights = True

    def make(self, root: Path) -> Callback:
        return GradientAccumulationScheduler({1: 2})

    def trainer(self, root: Path, callback: Callback | None, **options: Any) -> Any:
        """It and `accumulate_grad_batches` are not for one Trainer."""
        return super().trainer(root, callback, **(options | {"accumulate_grad_batches": 1}))


class TestThroughputMonitor(CallbackConformance):
    name = "ThroughputMonitor"

    def make(self, root: Path) -> Callback:
        return ThroughputMonitor(length_fn=len, window_size=2, separator="-")


class TestSpikeDetection(CallbackConformance):
    name = "SpikeDetection"

    def make(self, root: Path) -> Callback:
        return SpikeDetection(window=4, warmup=2, rtol=50.0, exclude_batches_path=str(root))


class TestEarlyStopping(CallbackConformance):
    name = "EarlyStopping"

    def make(self, root: Path) -> Callback:
        return EarlyStopping("val_loss", patience=9, min_delta=0.5, strict=False)


class Misspelled(Callback):
    def on_train_bach_end(self) -> None: ...


class TakesLess(Callback):
    def on_train_batch_end(self, trainer: Any, module: Any) -> None: ...  # type: ignore[override]


class Draws(Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        torch.rand(1)


class Forgets(Callback):
    """Its state is none at first, so that it would not be restored; and a second fit goes on with the first one's."""

    count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count} if self.count else {}

    def on_train_batch_end(self, *_: Any) -> None:
        self.count += 1


@pytest.mark.parametrize(
    ("kind", "test", "failure"),
    [
        (Misspelled, "has_no_hooks_but_those_that_are_called", "on_train_bach_end"),
        (TakesLess, "has_no_hooks_but_those_that_are_called", "too many positional arguments"),
        (Draws, "leaves_the_weights_alone", ""),
        (Forgets, "its_state_is_plain_and_survives_a_checkpoint", "a state that is empty at first"),
        (Forgets, "goes_on_as_if_nothing_had_happened", ""),
        (Forgets, "begins_anew_with_each_fit", ""),
    ],
)
def test_a_callback_that_does_not_conform_is_found(tmp_path: Path, kind: Any, test: str, failure: str) -> None:
    conformance = CallbackConformance()
    conformance.make = lambda root: kind()  # type: ignore[method-assign]
    with pytest.raises((AssertionError, TypeError)) as caught:
        getattr(conformance, f"test_{test}")(tmp_path)
    assert failure in str(caught.value)
