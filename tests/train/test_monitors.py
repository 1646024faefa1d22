"""What is logged of learning rates, devices and throughput, compared with Lightning's own callbacks."""

from __future__ import annotations

import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric.utilities.throughput import Throughput as LightningThroughput
from pytorch_lightning import callbacks as lightning
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau, StepLR
from training import Mlp, Recorder, Scripted, bare_trainer, metric_rows, new_trainer, numbers, train_loader
from twins import Digits, Twin, calm, fit_both, loader, twins

from shipline.errors import ConfigError, MissingExtraError
from shipline.train import DeviceStatsMonitor, LearningRateMonitor, ThroughputMonitor
from shipline.train.accelerators import CpuAccelerator
from shipline.train.accelerators.peak import peak_of
from shipline.train.callbacks.throughput_monitor import Throughput

# ---- learning rates --------------------------------------------------------------------------------------------------


def one(module: Any) -> Any:
    return SGD(module.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)


def groups(module: Any) -> Any:
    optimizer = Adam([{"params": [module.layer.weight]}, {"params": [module.layer.bias], "lr": 0.5}], lr=0.1)
    return [optimizer], [StepLR(optimizer, 1)]


def named_groups(module: Any) -> Any:
    parts = [{"params": [module.layer.weight], "name": "heavy"}, {"params": [module.layer.bias], "name": "light"}]
    return SGD(parts, lr=0.1)


def one_named_group(module: Any) -> Any:
    return SGD([{"params": list(module.parameters()), "name": "all"}], lr=0.1)


def two_schedules(module: Any) -> Any:
    optimizer = SGD(module.parameters(), lr=0.4)
    each = {"scheduler": ExponentialLR(optimizer, 0.5), "interval": "step", "frequency": 2}
    plateau = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": "val_loss"}
    return [optimizer], [each, plateau]


def named_schedule(module: Any) -> Any:
    optimizer = Adam(module.parameters(), lr=0.1)
    return [optimizer], [{"scheduler": StepLR(optimizer, 1), "name": "rate"}]


class TwoOptimizers(Digits):
    """Steps three optimizers itself, of which two are of one class, and two have no schedule."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def configure_optimizers(self) -> Any:
        first, second = SGD([self.layer.weight], lr=0.1), Adam([self.layer.bias], lr=0.2)
        third = SGD([self.layer.bias], lr=0.3)
        return [first, second, third], [StepLR(third, 1)]


@pytest.mark.parametrize("interval", [None, "step", "epoch"])
@pytest.mark.parametrize(
    "optimizers", [one, groups, named_groups, one_named_group, two_schedules, named_schedule, None]
)
def test_learning_rates_are_logged_as_by_lightning(optimizers: Any, interval: Any) -> None:
    options = {"logging_interval": interval, "log_momentum": True, "log_weight_decay": True}
    pair = twins(
        LearningRateMonitor(**options), lightning.LearningRateMonitor(**options), max_epochs=2, log_every_n_steps=2
    )
    fit_both(pair, lambda: TwoOptimizers() if optimizers is None else Digits(optimizers))
    ours, theirs = pair
    names = [*theirs.callback.lrs, *theirs.callback.last_momentum_values, *theirs.callback.last_weight_decay_values]
    assert ours.rows(names.__contains__) == theirs.rows(names.__contains__) != []
    assert ours.callback.lrs == theirs.callback.lrs
    assert ours.callback.last_momentum_values == theirs.callback.last_momentum_values
    assert ours.callback.last_weight_decay_values == theirs.callback.last_weight_decay_values
    shown = {name: float(v) for name, v in theirs.trainer.callback_metrics.items() if name in names}
    assert {n: float(v) for n, v in ours.trainer.callback_metrics.items() if n in names} == pytest.approx(shown)


def test_learning_rates_are_logged_once_for_a_step_of_several_batches() -> None:
    pair = twins(
        LearningRateMonitor("step"), lightning.LearningRateMonitor("step"), max_epochs=2, accumulate_grad_batches=2
    )
    fit_both(pair, lambda: Digits(one))
    ours, theirs = (twin.rows(lambda name: name == "lr-SGD") for twin in pair)
    assert ours == theirs
    assert len(ours) == 10


def test_a_second_group_goes_on_with_the_first_under_a_new_name() -> None:
    class Unfreezes(Digits):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.optimizers(use_pl_optimizer=False).add_param_group({"params": [self.layer.bias], "lr": 0.5})

    def frozen(module: Any) -> Any:
        return SGD([module.layer.weight], lr=0.1)

    pair = twins(LearningRateMonitor("step"), lightning.LearningRateMonitor("step"), max_epochs=2)
    fit_both(pair, lambda: Unfreezes(frozen))
    assert pair[0].callback.lrs == pair[1].callback.lrs == {"lr-SGD/pg1": [0.1] * 10, "lr-SGD/pg2": [0.5] * 5}


def test_groups_of_one_name_are_refused() -> None:
    def same(module: Any) -> Any:
        return SGD([{"params": [p], "name": "part"} for p in module.parameters()], lr=0.1)

    trainer = bare_trainer(max_epochs=1, logger=Recorder(), callbacks=LearningRateMonitor())
    with pytest.raises(ConfigError, match="The parameter groups of SGD are called part, part: name each"):
        trainer.fit(Digits(same), loader())


@pytest.mark.parametrize("kind", [LearningRateMonitor, DeviceStatsMonitor])
def test_a_monitor_without_a_logger_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__} has no logger to write to: give the Trainer one"):
        bare_trainer(max_epochs=1, callbacks=kind()).fit(Scripted(), numbers(1))


def test_an_interval_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="LearningRateMonitor has logging_interval='batch'; choose 'step', 'epoch'"):
        LearningRateMonitor("batch")  # type: ignore[arg-type]


def test_learning_rates_stand_in_the_csv_file_beside_the_metrics_of_the_step(tmp_path: Path) -> None:
    trainer = new_trainer(tmp_path, max_epochs=1, log_every_n_steps=2, callbacks=LearningRateMonitor())
    run = trainer.fit(Mlp(lr=0.25), train_loader(128))
    found = [(row["step"], row["lr-SGD"], "train_loss" in row) for row in metric_rows(str(run.url)) if "lr-SGD" in row]
    assert found == [("0", "0.25", False), ("1", "0.25", True), ("3", "0.25", True)]


# ---- devices ---------------------------------------------------------------------------------------------------------


def stats_of(twin: Twin) -> list[tuple[Any, list[str]]]:
    return [(step, sorted(values)) for step, values in twin.rows(lambda name: name.startswith("DeviceStatsMonitor."))]


@pytest.mark.parametrize("cpu_stats", [None, True, False])
def test_device_stats_are_logged_as_by_lightning(cpu_stats: bool | None) -> None:
    pair = twins(
        DeviceStatsMonitor(cpu_stats), lightning.DeviceStatsMonitor(cpu_stats), max_epochs=2, log_every_n_steps=2
    )
    fit_both(pair, Digits)
    for twin in pair:
        with calm():
            twin.trainer.test(Digits(), loader(1400, 40), verbose=False)
    assert stats_of(pair[0]) == stats_of(pair[1])
    names = {name for _, each in stats_of(pair[0]) for name in each}
    assert ("DeviceStatsMonitor.on_test_batch_end/cpu_percent" in names) == (cpu_stats is not False)
    assert ("DeviceStatsMonitor.on_validation_batch_start/cpu_vm_percent" in names) == (cpu_stats is not False)


class Elsewhere(CpuAccelerator):
    """Stands for an accelerator with figures of its own."""

    def get_device_stats(self, device: torch.device) -> dict[str, Any]:
        return {"allocated_bytes.all.current": 7}


@pytest.mark.parametrize("cpu_stats", [None, True, False])
def test_an_accelerator_gives_its_own_figures(cpu_stats: bool | None) -> None:
    trainer = types.SimpleNamespace(device=torch.device("meta"), accelerator=Elsewhere("elsewhere"))
    stats = DeviceStatsMonitor(cpu_stats)._stats(trainer)  # type: ignore[arg-type]
    assert stats["allocated_bytes.all.current"] == 7
    assert set(stats) - {"allocated_bytes.all.current"} == (
        {"cpu_percent", "cpu_vm_percent", "cpu_swap_percent"} if cpu_stats else set()
    )


def test_figures_of_the_cpu_without_psutil_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingExtraError, match=r"need psutil. Run: pip install 'shipline\[train\]'"):
        bare_trainer(max_epochs=1, logger=Recorder(), callbacks=DeviceStatsMonitor()).fit(Scripted(), numbers(1))


# ---- throughput ------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that both callbacks see, which steps put forward."""
    seconds = [0.0]
    fake = types.SimpleNamespace(perf_counter=lambda: seconds[0])
    monkeypatch.setattr("shipline.train.callbacks.throughput_monitor.time", fake)
    monkeypatch.setattr("pytorch_lightning.callbacks.throughput_monitor.time", fake)
    return seconds


def takes_time(clock: list[float], flops: int | None) -> type[Digits]:
    class TakesTime(Digits):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock[0] += 1 + batch_idx / 8
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            clock[0] += 0.5

        def test_step(self, batch: Any, batch_idx: int) -> None:
            clock[0] += 0.25

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            clock[0] += 0.125

    if flops is not None:
        TakesTime.flops_per_batch = flops  # type: ignore[attr-defined]
    return TakesTime


@pytest.mark.parametrize("flops", [None, 1000])
@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 2}, {"log_every_n_steps": 2, "val_check_interval": 2}]
)
def test_throughput_is_logged_as_by_lightning(clock: list[float], options: dict[str, Any], flops: int | None) -> None:
    how: dict[str, Any] = {"batch_size_fn": lambda batch: len(batch[0]), "window_size": 3}
    if flops is None:
        how["length_fn"] = lambda batch: batch[0].numel()
    pair = twins(ThroughputMonitor(**how), lightning.ThroughputMonitor(**how), **({"max_epochs": 2} | options))
    for twin in pair:
        clock[0] = 100.0
        with calm():
            twin.trainer.fit(takes_time(clock, flops)(), loader(), loader(1400, 64))
            twin.trainer.test(takes_time(clock, flops)(), loader(1400, 64), verbose=False)
            twin.trainer.predict(takes_time(clock, flops)(), loader(1400, 64))
    found, expected = ([values for _, values in twin.rows(lambda n: n != "epoch")] for twin in pair)
    assert found == [pytest.approx(values) for values in expected]
    train, theirs = (twin.rows(lambda name: name.startswith("train/")) for twin in pair)
    assert [step for step, _ in train] == [step for step, _ in theirs]
    names = {name for values in found for name in values}
    assert {"train/device/samples_per_sec", "validate/time", "test/batches", "predict/samples"} <= names
    assert ("train/device/flops_per_sec" in names) == (flops is not None)
    assert ("validate/device/items_per_sec" in names) == (flops is None)


def test_each_validation_has_steps_of_its_own(clock: list[float]) -> None:
    """Or a logger with one row a step would lose those before."""
    recorder = Recorder()
    trainer = bare_trainer(
        max_epochs=2, logger=recorder, log_every_n_steps=1, callbacks=ThroughputMonitor(window_size=2)
    )
    trainer.fit(takes_time(clock, None)(), loader(), loader(1400, 64))
    assert [step for step, _ in recorder.of("validate/batches")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert recorder.of("validate/samples") == [(step, 16 * (step - 1 - 4 * (step > 4)) + 16) for step in range(1, 9)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_rates_are_those_of_lightning(world_size: int) -> None:
    draw = random.Random(3)
    ours = Throughput(world_size, window_size=4, separator="|", available_flops=5e3)
    theirs = LightningThroughput(5e3, world_size, window_size=4, separator="|")
    total: dict[str, Any] = {"time": 0.0, "batches": 0, "samples": 0, "lengths": 0}
    for _ in range(9):
        total["time"] += draw.random()
        total["batches"] += 1
        total["samples"] += draw.randint(1, 9)
        total["lengths"] += draw.randint(10, 99)
        flops = draw.randint(10, 99)
        for each in (ours, theirs):
            each.update(**total, flops=flops)
        assert ours.compute() == pytest.approx(theirs.compute())
    assert ("flops_per_sec" in ours.compute()) == (world_size > 1)


def test_what_throughput_cannot_count_is_refused() -> None:
    with pytest.raises(ConfigError, match="window_size=1; a rate needs 2 batches"):
        ThroughputMonitor(window_size=1)
    trainer = bare_trainer(max_epochs=1, callbacks=ThroughputMonitor(lambda batch: 0))
    with pytest.raises(ConfigError, match="ThroughputMonitor's batch_size_fn returned 0 of a batch"):
        trainer.fit(Scripted(), numbers(1))


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", False, 989e12),
        ("NVIDIA H100 80GB HBM3", "32-true", True, 494.5e12),
        ("NVIDIA H100 PCIe", "16-true", False, 756e12),
        ("NVIDIA A100-SXM4-80GB", "32-true", False, 19.5e12),
        ("Tesla T4", "32-true", True, 8.1e12),
        ("NVIDIA L40S", "64-true", False, 1.4e12),
        ("NVIDIA RTX A4000", "32-true", False, None),
        ("NVIDIA H200", "fp8", False, None),
    ],
)
def test_peaks_of_known_devices(name: str, precision: str, tf32: bool, flops: float | None) -> None:
    assert peak_of(name, precision, tf32) == flops
