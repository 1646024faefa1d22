"""Where the time goes: which actions are measured, what each profiler makes of it, and where it writes that."""

from __future__ import annotations

import logging
import pstats
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from profiler_conformance import ProfilerConformance
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import Mlp, bare_trainer, new_trainer, numbers, on_hook, rows, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError, TrainingError, UnknownNameError
from shipline.train.profilers import AdvancedProfiler, MemoryProfiler, Profiler, SimpleProfiler

CUDA = torch.cuda.is_available()


class TestSimple(ProfilerConformance):
    name = "simple"

    @pytest.fixture
    def profiler(self) -> Profiler:
        return SimpleProfiler()


class TestAdvanced(ProfilerConformance):
    name = "advanced"

    @pytest.fixture
    def profiler(self) -> Profiler:
        return AdvancedProfiler()


@pytest.mark.skipif(not CUDA, reason="the allocations that are remembered are those on a GPU")
class TestMemory(ProfilerConformance):
    name = "memory"

    @pytest.fixture
    def profiler(self) -> Profiler:
        return MemoryProfiler()


# ---- which actions ---------------------------------------------------------------------------------------------------


class Watch(Profiler):
    """Writes down each action below those that it is within."""

    def __init__(self) -> None:
        super().__init__(filename="watch")
        self.running: list[str] = []
        self.seen: list[tuple[str, ...]] = []

    def start(self, action_name: str) -> None:
        assert action_name not in self.running
        self.running.append(action_name)
        self.seen.append(tuple(self.running))

    def stop(self, action_name: str) -> None:
        assert self.running.pop() == action_name

    def summary(self) -> str:
        return ""

    def calls(self) -> Counter[str]:
        """How often each action was done."""
        return Counter(actions[-1] for actions in self.seen)


def measured(base: Any) -> Any:
    """A module with hooks, clipped, scheduled and validated."""

    class Measured(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self.layers(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "interval": "step"}]

    def passing(name: str) -> Any:
        def hook(self: Any, *arguments: Any, **named: Any) -> Any:
            return getattr(super(Measured, self), name)(*arguments, **named)

        return hook

    for name in _HOOKS:
        setattr(Measured, name, passing(name))
    return Measured()


_HOOKS = (
    "setup", "teardown", "on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_epoch_start",
    "on_train_epoch_end", "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward",
    "on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping", "optimizer_step",
    "optimizer_zero_grad", "lr_scheduler_step", "on_validation_start", "on_validation_end",
    "on_validation_epoch_start", "on_validation_epoch_end", "on_validation_batch_start", "on_validation_batch_end",
    "on_validation_model_eval", "on_validation_model_zero_grad", "on_before_batch_transfer",
    "transfer_batch_to_device", "on_after_batch_transfer",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_actions_are_those_of_lightning_as_often() -> None:
    """Hooks, steps, backward and optimizer steps under almost the same names."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    options = {"max_epochs": 2, "gradient_clip_val": 1.0}
    expected = lightning.profilers.SimpleProfiler()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(accelerator="cpu", enable_model_summary=False, profiler=expected, **quiet, **options).fit(
        measured(lightning.LightningModule), train_loader(128), val_loader(64)
    )
    watch = Watch()
    bare_trainer(profiler=watch, **options).fit(measured(sl.Module), train_loader(128), val_loader(64))

    theirs = {name: len(times) for name, times in expected.recorded_durations.items()}
    of_strategy = "[Strategy]SingleDeviceStrategy."
    ours = watch.calls()
    for name in (*_HOOKS, "configure_optimizers"):
        assert ours[f"[Module]Measured.{name}"] == theirs[f"[LightningModule]Measured.{name}"], name
    for name in ("training_step", "validation_step", "backward"):
        assert ours[f"[Module]Measured.{name}"] == theirs[f"{of_strategy}{name}"], name
    for name in ("run_training_epoch", "run_training_batch"):
        assert ours[name] == theirs[name]
    # Ours counts, too, finding out that an epoch has no more batches.
    assert ours["train_dataloader_next"] == theirs["[_TrainingEpochLoop].train_dataloader_next"] + 2
    assert ours["validation_dataloader_next"] == theirs["[_EvaluationLoop].val_next"] + 3


def test_actions_nest_as_they_are_called() -> None:
    watch = Watch()
    callback = on_hook("on_after_backward", lambda *_: None)
    bare_trainer(max_epochs=1, profiler=watch, callbacks=callback).fit(Mlp(), train_loader(64), val_loader(32))
    assert watch.running == []
    step = ("run_training_epoch", "run_training_batch", "[Module]Mlp.optimizer_step")
    for within in ("training_step", "optimizer_zero_grad", "backward"):
        assert watch.seen.count((*step, f"[Module]Mlp.{within}")) == 2
    assert watch.seen.count((*step, "[Callback]OnHook.on_after_backward")) == 2
    assert watch.seen.count(("run_training_epoch", "[Module]Mlp.validation_step")) == 1
    assert watch.seen.count(("[Module]Mlp.validation_step",)) == 1  # the sanity check's
    assert watch.seen.count(("run_training_epoch", "train_dataloader_next")) == 3


def test_manual_steps_other_stages_and_checkpoints_are_measured(tmp_path: Path) -> None:
    class Manual(Mlp):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    class Data(sl.DataModule):
        def train_dataloader(self) -> Any:
            return train_loader(64)

        def predict_dataloader(self) -> Any:
            return DataLoader(rows(0, 32).tensors[0], 32)

    watch = Watch()
    trainer = new_trainer(tmp_path, max_epochs=1, profiler=watch)
    trainer.fit(Manual(), Data())
    step = ("run_training_epoch", "run_training_batch", "[Module]Manual.training_step")
    assert watch.seen.count((*step, "[Module]Manual.backward")) == 2
    assert watch.seen.count((*step, "optimizer_step")) == 2
    assert watch.calls()["save_checkpoint"] == 1
    assert watch.calls()["[DataModule]Data.train_dataloader"] == 1
    watch.seen.clear()
    trainer.predict(Mlp(), datamodule=Data())
    trainer.test(Mlp(), val_loader(64))
    assert {"[DataModule]Data.predict_dataloader": 1, "predict_dataloader_next": 2, "test_dataloader_next": 3,
            "[Module]Mlp.predict_step": 1, "[Module]Mlp.test_step": 2}.items() <= watch.calls().items()  # fmt: skip


def test_without_a_profiler_nothing_is_wrapped() -> None:
    trainer = bare_trainer(max_epochs=1)
    module = measured(sl.Module)
    trainer.fit(module, train_loader(64))
    hooks = trainer.hooks
    assert hooks.of("on_train_batch_start") == [module.on_train_batch_start]
    assert hooks.method("backward") == module.backward
    assert hooks.profiled("any", print) is print
    batches = iter(numbers(2))
    assert trainer.profiler.profile_iterable(batches, "any") is batches
    with trainer.profiler.profile("what a module of Lightning's may do"):
        pass


# ---- each of them ----------------------------------------------------------------------------------------------------


def table_of(text: str) -> dict[str, list[str]]:
    """The columns of each action."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()[3:]}


def test_the_simple_table() -> None:
    profiler = SimpleProfiler(filename="quiet")
    bare_trainer(max_epochs=2, profiler=profiler).fit(Mlp(), train_loader(128), val_loader(64))
    title, header, *_ = profiler.summary().splitlines()
    assert title == "FIT Profiler Report"
    assert header.split("  ")[0] == "Action"
    assert header.split()[1:] == ["Mean", "duration", "(s)", "Num", "calls", "Total", "time", "(s)", "Percentage", "%"]
    found = table_of(profiler.summary())
    mean, calls, total, share = map(float, found["[Module]Mlp.training_step"])
    assert calls == 8
    assert mean * calls == pytest.approx(total, rel=1e-3)
    assert 0 < share < float(found["run_training_epoch"][3]) < 100
    assert int(found["Total"][0]) == sum(int(columns[1]) for name, columns in found.items() if name != "Total")
    totals = [float(columns[2]) for name, columns in found.items() if name != "Total"]
    assert totals == sorted(totals, reverse=True)
    profiler.extended = False
    assert [len(columns) for name, columns in table_of(profiler.summary()).items() if name != "Total"] == [2] * len(
        totals
    )


def test_an_action_begins_and_ends_once() -> None:
    profiler = SimpleProfiler()
    profiler.start("a")
    with pytest.raises(TrainingError, match="'a' is being measured: it cannot begin within itself"):
        profiler.start("a")
    for other in (profiler, AdvancedProfiler()):
        with pytest.raises(TrainingError, match="'b' ends, and"):
            other.stop("b")


def work(count: int) -> int:
    return sum(range(count))


def rest(count: int) -> int:
    return work(count)


def test_the_advanced_profiler_goes_on_with_what_an_action_was_within(tmp_path: Path) -> None:
    """Lightning's leaves out all that comes after the first action within another."""
    reports = []
    for profiler in (AdvancedProfiler(), lightning.profilers.AdvancedProfiler()):
        with profiler.profile("outer"):
            with profiler.profile("inner"):
                work(10)
            rest(10)
        reports.append(profiler.summary().split("Profile stats for: ")[1:])
    (outer, inner), (theirs, _) = reports
    assert outer.startswith("outer rank: 0")
    assert "(rest)" in outer
    assert "(work)" in inner
    assert "(rest)" not in inner
    assert "(rest)" not in theirs


def test_the_advanced_profilers_settings(tmp_path: Path) -> None:
    profiler = AdvancedProfiler(str(tmp_path), "adv", line_count_restriction=2, dump_stats=True)
    bare_trainer(max_epochs=1, profiler=profiler).fit(Mlp(), train_loader(64))
    report = (tmp_path / "fit-adv-0.txt").read_text()
    assert "due to restriction <2>" in report
    stats: Any = pstats.Stats(str(tmp_path / "fit-adv-0-_Module_Mlp.training_step.prof"))
    [calls] = [found[0] for (_, _, name), found in stats.stats.items() if name == "training_step"]
    assert calls == 2
    with pytest.raises(ConfigError, match=r"line_count_restriction=1\.5; set a whole number, or a share up to 1\.0"):
        AdvancedProfiler(line_count_restriction=1.5)


def test_a_profiler_that_is_none_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown profiler 'simpel'\. Did you mean 'simple'\?"):
        sl.Trainer(profiler="simpel")
    with pytest.raises(ConfigError, match=r"profiler is a SimpleProfiler, which is no shipline"):
        sl.Trainer(profiler=lightning.profilers.SimpleProfiler())
    with pytest.raises(ConfigError, match=r"SimpleProfiler has no option 'dirpth'\. Did you mean 'dirpath'\?"):
        SimpleProfiler(dirpth="x")  # type: ignore[call-arg]


@pytest.mark.skipif(CUDA, reason="this machine has a GPU")
def test_a_snapshot_of_memory_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="profiler='memory' remembers the allocations on a cuda device"):
        bare_trainer(max_steps=1, profiler="memory").fit(Mlp(), train_loader(32))


@pytest.mark.skipif(not CUDA, reason="the allocations that are remembered are those on a GPU")
def test_a_snapshot_of_memory_names_who_allocated(tmp_path: Path) -> None:
    profiler = MemoryProfiler(str(tmp_path), "m")
    bare_trainer(max_epochs=1, accelerator="gpu", profiler=profiler).fit(Mlp(), train_loader(128))
    assert b"training_step" in (tmp_path / "fit-m-0.pickle").read_bytes()
    assert "[Module]Mlp.training_step" in (tmp_path / "fit-m-0.txt").read_text()
