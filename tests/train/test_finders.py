"""Learning rate and batch size, found by trials that leave no trace."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import pytorch_lightning.callbacks as theirs
import torch
from callback_checks import STEPS, Backbone, quiet_lightning, same_tree
from lightning_digits import LightningDigits
from torch.utils.data import DataLoader
from training import Mlp, bare_trainer, new_trainer, on_hook, rows, same_weights, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError, MissingExtraError
from shipline.store import open_store
from shipline.train import BatchSizeFinder, LearningRateFinder, ModelCheckpoint, Tuner
from shipline.train.callbacks import lr_finder
from shipline.train.trials.snapshot import Snapshot
from shipline.train.trials.trial import train_steps, trial

# Lightning warns of few data workers, of no logger, and of its own future.
pytestmark = pytest.mark.filterwarnings("ignore")

QUIET: dict[str, Any] = {
    "enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False,
    "accelerator": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick_collection() -> Iterator[None]:
    """Finders collect garbage, which takes half a second over all that the tests have imported."""
    gc.freeze()
    yield
    gc.unfreeze()


class Noisy(Backbone):
    """Draws from every generator, counts, collects, owns a generator: whatever a trial could leave behind."""

    def __init__(self, lr: float = 0.1, schedule: bool = True) -> None:
        super().__init__(lr=lr, schedule=schedule)
        self.seen: list[float] = []
        self.steps = 0
        self.own = torch.Generator().manual_seed(3)
        self.plain = torch.zeros(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        self.plain += 1
        self.seen.append(random.random() + np.random.rand())
        noise = torch.rand(64, generator=self.own) * 0.01
        return super().training_step([batch[0] + noise, batch[1]], batch_idx)


class Rows(sl.DataModule):
    """Shuffled digits, in batches of `batch_size`, by a generator that it owns."""

    def __init__(self, batch_size: int = 16, count: int = 16 * STEPS) -> None:
        self.batch_size = batch_size
        self.count = count
        self.asked = 0
        self.own = torch.Generator().manual_seed(5)

    def train_dataloader(self) -> DataLoader[Any]:
        self.asked += 1
        return DataLoader(rows(0, self.count), self.batch_size, shuffle=True, generator=self.own)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(1400, 1432), self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


def trained(*callbacks: Any, data: Any = None, make: Any = Noisy, **options: Any) -> tuple[Any, Any]:
    """A module of two epochs with the callbacks; and the Trainer."""
    sl.seed_everything(0)
    module = make()
    trainer = bare_trainer(max_epochs=2, callbacks=list(callbacks), **options)
    trainer.fit(module, Rows() if data is None else data)
    return module, trainer


def same_outcome(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    """The same weights, attributes, counters, metrics, optimizers, schedulers and generators."""
    (module, trainer), (other_module, other_trainer) = one, other
    assert same_weights(module, other_module)
    assert (module.steps, module.seen) == (other_module.steps, other_module.seen)
    assert torch.equal(module.plain, other_module.plain)
    assert torch.equal(module.own.get_state(), other_module.own.get_state())
    assert torch.equal(trainer.data.own.get_state(), other_trainer.data.own.get_state())
    assert trainer.data.asked == other_trainer.data.asked
    assert trainer.progress == other_trainer.progress
    assert same_tree(trainer.callback_metrics, other_trainer.callback_metrics)
    for kind in ("optimizers", "schedules"):
        states = [
            [getattr(item, "scheduler", item).state_dict() for item in getattr(each, kind)]
            for each in (trainer, other_trainer)
        ]
        assert same_tree(*states)


# ---- trials ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 3}], ids=str)
@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_epoch_start", "on_train_batch_end"])
def test_a_trial_leaves_no_trace(hook: str, options: dict[str, Any]) -> None:
    """Before training, between epochs, and in the middle of one, where gradients are being accumulated."""

    def steps(trainer: sl.Trainer, module: Any, *_: Any) -> None:
        before = {name: value.clone() for name, value in module.state_dict().items()}
        with trial(trainer) as other:
            train_steps(other, 12)
            assert other.global_step == trainer.global_step + 12
            assert module.steps == trainer.progress.all_batches + other.progress.all_batches - before_all
            assert not same_tree(before, module.state_dict())
        assert same_tree(before, module.state_dict())

    before_all = 0

    def count(trainer: sl.Trainer, module: Any, *rest: Any) -> None:
        nonlocal before_all
        before_all = trainer.progress.all_batches
        steps(trainer, module, *rest)

    same_outcome(trained(on_hook(hook, count), **options), trained(on_hook(hook, lambda *_: None), **options))


def test_a_trial_that_fails_leaves_no_trace() -> None:
    class Fails(Noisy):
        fail_at = -1

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.steps == self.fail_at:
                raise ValueError("no")
            return super().training_step(batch, batch_idx)

    def attempt(trainer: sl.Trainer, module: Any) -> None:
        module.fail_at = 3
        with pytest.raises(ValueError, match="no"), trial(trainer) as other:
            train_steps(other, 9)
        module.fail_at = -1

    same_outcome(trained(on_hook("on_fit_start", attempt), make=Fails), trained(make=Fails))


def test_a_trial_stops_when_the_process_is_told_to_end() -> None:
    """What is to be done then, the run itself does."""

    def interrupt(trainer: sl.Trainer, module: Any) -> None:
        finder = LearningRateFinder()
        trainer.signals.received = 15
        finder.lr_find(trainer, module)
        trainer.signals.received = None
        assert finder.optimal_lr is not None
        assert len(finder.optimal_lr.results["lr"]) == 1

    same_outcome(trained(on_hook("on_fit_start", interrupt)), trained())


def test_a_snapshot_puts_everything_back_in_place() -> None:
    class Thing:
        def __init__(self) -> None:
            self.number, self.tensor, self.parameter = 1, torch.ones(2), torch.nn.Parameter(torch.ones(2))
            self.parameter.grad = torch.full((2,), 5.0)
            self.nested = {"list": [1, {2}, torch.zeros(1)], "tuple": (torch.zeros(1),)}

    thing = Thing()
    held = (thing.tensor, thing.nested, thing.nested["list"], thing.parameter.grad)
    before = Snapshot(thing)
    thing.number, thing.extra = 2, 3  # type: ignore[attr-defined]
    thing.tensor += 1
    with torch.no_grad():
        thing.parameter.fill_(9)
    assert thing.parameter.grad is not None
    thing.parameter.grad += 1
    thing.parameter.requires_grad_(requires_grad=False)
    thing.nested["list"][1].add(7)  # type: ignore[union-attr]
    thing.nested["list"][2].fill_(4)  # type: ignore[union-attr]
    thing.nested["tuple"][0].fill_(4)  # type: ignore[union-attr]
    thing.nested["list"].append(8)  # type: ignore[union-attr]
    thing.nested["more"] = []
    before.restore()
    fresh = Thing()
    assert same_tree({**vars(thing), "nested": 0}, {**vars(fresh), "nested": 0})
    assert thing.parameter.requires_grad
    assert torch.equal(thing.parameter.grad, torch.full((2,), 5.0))
    assert thing.nested == {"list": [1, {2}, torch.zeros(1)], "tuple": (torch.zeros(1),)}
    now = (thing.tensor, thing.nested, thing.nested["list"], thing.parameter.grad)
    assert all(one is other for one, other in zip(held, now, strict=True))


# ---- the learning rate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "linear", "num_training_steps": 30, "max_lr": 0.5},
        {"min_lr": 1e-4, "max_lr": 1e4, "num_training_steps": 50},
        {"max_lr": 1e6, "early_stop_threshold": None, "num_training_steps": 40},
    ],
    ids=["default", "linear", "stopped early", "not finite"],
)
def test_the_search_is_lightnings(tmp_path: Path, options: dict[str, Any]) -> None:
    """The same rates and losses, the same suggestion, and the same training afterwards."""
    found: list[Any] = []
    for make_trainer, make_finder in (
        (sl.Trainer, LearningRateFinder), (pytorch_lightning.Trainer, theirs.LearningRateFinder),
    ):  # fmt: skip
        torch.manual_seed(0)
        module, finder = LightningDigits(), make_finder(**options)  # type: ignore[operator]
        make: Any = make_trainer
        trainer = make(callbacks=[finder], max_epochs=-1, max_steps=2 * STEPS, default_root_dir=str(tmp_path), **QUIET)
        with quiet_lightning():
            trainer.fit(module, train_loader(16 * STEPS, 16, shuffle=False), val_loader(32))
        found.append((module, finder.optimal_lr))
    (ours, one), (others, other) = found
    assert one.results["lr"] == pytest.approx(other.results["lr"])
    assert one.results["loss"] == pytest.approx(other.results["loss"], rel=1e-5, nan_ok=True)
    assert one.suggestion() == pytest.approx(other.suggestion())
    assert one.suggestion(3, 5) == pytest.approx(other.suggestion(3, 5))
    assert ours.lr == pytest.approx(others.lr)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, others.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("update", [True, False])
def test_a_fit_after_the_search_is_one_without_it_but_for_the_rate(update: bool) -> None:
    """Schedulers, too, begin with what was found."""
    finder = LearningRateFinder(num_training_steps=30, update_attr=update)
    module, trainer = trained(finder)
    assert finder.optimal_lr is not None
    lr = finder.optimal_lr.suggestion() if update else 0.1
    assert module.lr == module.hparams.lr == lr
    same_outcome((module, trainer), trained(make=lambda: Noisy(lr=lr or 0.0)))


def test_what_was_tried_is_in_the_runs_directory(tmp_path: Path) -> None:
    finder = LearningRateFinder(num_training_steps=30)
    run = new_trainer(tmp_path, max_epochs=1, callbacks=finder).fit(Mlp(), train_loader(64))
    store, found = open_store(str(run.url)), finder.optimal_lr
    assert found is not None
    assert store.read(lr_finder.PLOT_FILE).startswith(b"\x89PNG")
    content = json.loads(store.read(lr_finder.RESULTS_FILE))
    assert content == {"mode": "exponential", "suggestion": found.suggestion(), **found.results}
    assert run.module.load_from_checkpoint(str(run.last_url)).lr == found.suggestion()


def test_the_plot_marks_the_suggestion() -> None:
    found = lr_finder.LRFinder("exponential", 1e-4, 1.0, 20)
    rates = [10 ** (-4 + step / 5) for step in range(20)]
    found.results = {"lr": rates, "loss": [3.0] * 12 + [1.0] * 8}
    [axes] = found.plot(suggest=True).axes
    line, mark = axes.lines
    assert line.get_xdata().tolist() == rates
    assert mark.get_xdata()[0] == found.suggestion()
    assert found.suggestion() in rates[10:14]
    assert axes.get_xscale() == "log"
    assert found.plot(ax=axes) is axes.figure
    assert len(axes.lines) == 3


def test_without_matplotlib_there_is_no_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    finder = LearningRateFinder(num_training_steps=20)
    run = new_trainer(tmp_path, max_epochs=1, callbacks=finder).fit(Mlp(), train_loader(64))
    assert open_store(str(run.url)).list("plots") == ["lr_finder.json"]
    assert finder.optimal_lr is not None
    with pytest.raises(MissingExtraError, match=r"needs 'matplotlib', which is not installed\. Run: pip install"):
        finder.optimal_lr.plot()


def test_a_resumed_run_keeps_what_was_found(tmp_path: Path) -> None:
    """Searched for again, from trained weights, it would be another one."""
    calls: list[int] = []

    class Counts(LearningRateFinder):
        def lr_find(self, trainer: Any, module: Any) -> None:
            calls.append(trainer.global_step)
            super().lr_find(trainer, module)

    def run(name: str, seed: int, cut: bool, ckpt_path: str | None = None) -> Any:
        def stop(trainer: sl.Trainer, *_: Any) -> None:
            if cut and trainer.global_step == 11:
                raise RuntimeError("power cut")

        sl.seed_everything(seed)
        keep = ModelCheckpoint(every_n_train_steps=5)
        callbacks = [Counts(num_training_steps=30), keep, on_hook("on_train_batch_start", stop)]
        trainer = new_trainer(tmp_path, name=name, max_epochs=2, callbacks=callbacks)
        module = Backbone(schedule=True)
        trainer.fit(module, train_loader(16 * STEPS, 16), val_loader(32), ckpt_path=ckpt_path)
        return module, trainer.optimizer.state_dict()

    whole, optimizer = run("whole", 0, cut=False)
    with pytest.raises(RuntimeError, match="power cut"):
        run("parts", 0, cut=True)
    resumed, again = run("parts", 99, cut=False, ckpt_path="last")
    assert calls == [0, 0]
    assert same_weights(resumed, whole)
    assert same_tree(again, optimizer)
    assert resumed.lr == whole.lr != 0.1


def test_a_subclass_may_search_in_a_later_epoch() -> None:
    class Later(LearningRateFinder):
        def on_fit_start(self, trainer: Any, module: Any) -> None: ...

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                self.lr_find(trainer, module)

    finder = Later(num_training_steps=30)
    module, trainer = trained(finder, make=lambda: Noisy(schedule=False))
    assert finder.optimal_lr is not None
    assert trainer.optimizer.param_groups[0]["lr"] == module.lr == finder.optimal_lr.suggestion() != 0.1
    assert module.steps == 2 * STEPS


class Unnamed(Mlp):
    def __init__(self) -> None:
        super().__init__()
        del self.lr
        self.rate = 0.1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Two(Mlp):
    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.2)]


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (
            Unnamed,
            {},
            r"'lr' or 'learning_rate' is to be tuned, and is no attribute of Unnamed.*name yours with attr_name",
        ),
        (Unnamed, {"attr_name": "ratte"}, r"'ratte' is to be tuned.*Did you mean 'rate'\?"),
        (Two, {}, "works with one optimizer, and Two has 2"),
        (Mlp, {"mode": "steep"}, "has mode='steep'; choose 'exponential' or 'linear'"),
        (Mlp, {"min_lr": 1.0, "max_lr": 0.1}, r"has min_lr=1\.0 and max_lr=0\.1"),
        (Mlp, {"num_training_steps": 0}, "has num_training_steps=0; set 1 or more"),
        (Mlp, {"num_training": 5}, r"has no option 'num_training'\. Did you mean 'num_training_steps'\?"),
    ],
)
def test_what_no_rate_can_be_found_for(module: type[Mlp], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=1, callbacks=LearningRateFinder(**options)).fit(module(), train_loader(32))


def test_a_name_of_ones_own_and_too_few_rates(caplog: pytest.LogCaptureFixture) -> None:
    module = Unnamed()
    finder = LearningRateFinder(attr_name="rate", num_training_steps=30)
    bare_trainer(max_epochs=1, callbacks=finder).fit(module, train_loader(32))
    assert finder.optimal_lr is not None
    assert module.rate == finder.optimal_lr.suggestion() != 0.1

    module = Unnamed()
    bare_trainer(max_epochs=1, callbacks=LearningRateFinder(attr_name="rate", num_training_steps=5)).fit(
        module, train_loader(32)
    )
    assert module.rate == 0.1
    assert "5 learning rates were tried, too few to suggest one: raise num_training_steps" in caplog.text


# ---- the batch size --------------------------------------------------------------------------------------------------


def needs_memory(most: int) -> Callable[[Any], None]:
    """Ask torch for memory that no machine has, where a batch has more rows."""

    def ask(batch: Any) -> None:
        if len(batch[0]) > most:
            torch.empty(2**46)

    return ask


class Heavy(LightningDigits):
    def __init__(self, most: int) -> None:
        super().__init__()
        self.ask = needs_memory(most)
        self.tried: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.ask(batch)
        return super().training_step(batch, batch_idx)


class TheirRows(pytorch_lightning.LightningDataModule):
    def __init__(self, batch_size: int, count: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.count = count

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(0, self.count), self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(1400, 1432), self.batch_size)


@pytest.mark.parametrize(
    ("most", "count", "options"),
    [
        (40, 256, {}),
        (40, 256, {"mode": "binsearch"}),
        (40, 256, {"mode": "binsearch", "margin": 0.0}),
        (1000, 200, {}),
        (1000, 256, {"max_trials": 3}),
        (3, 64, {"init_val": 1, "mode": "binsearch"}),
    ],
)
def test_the_size_is_lightnings(tmp_path: Path, most: int, count: int, options: dict[str, Any]) -> None:
    found = []
    for make_trainer, make_finder in (
        (sl.Trainer, BatchSizeFinder), (pytorch_lightning.Trainer, theirs.BatchSizeFinder),
    ):  # fmt: skip
        make: Any = make_trainer
        finder: Any = make_finder(steps_per_trial=1, **options)  # type: ignore[operator]
        data = TheirRows(2, count)
        trainer = make(callbacks=[finder], max_epochs=1, default_root_dir=str(tmp_path), **QUIET)
        with quiet_lightning():
            trainer.fit(Heavy(most), datamodule=data)
        found.append((finder.optimal_batch_size, data.batch_size))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"init_val": 100}, 25),
        ({"init_val": 100, "mode": "binsearch", "margin": 0.3}, 28),
        ({"init_val": 100, "max_val": 50, "max_trials": 1, "mode": "binsearch"}, None),
        ({"max_val": 20}, 20),
        ({"init_val": 30, "mode": "binsearch", "margin": 0.0, "max_trials": 3}, 30),
    ],
)
def test_a_search_from_above_and_its_limits(options: dict[str, Any], size: int | None) -> None:
    """Lightning tries the first size with the loader of another one."""
    finder, data = BatchSizeFinder(steps_per_trial=1, **options), TheirRows(2, 256)
    fit = bare_trainer(max_epochs=1, callbacks=finder).fit
    if size is None:
        with pytest.raises(ConfigError, match="has found no batch size that fits"):
            fit(Heavy(40), datamodule=data)
        assert data.batch_size == 2
        return
    fit(Heavy(40), datamodule=data)
    assert finder.optimal_batch_size == data.batch_size == size


def test_a_fit_after_the_search_is_one_without_it_but_for_the_size() -> None:
    class Heavier(Noisy):
        ask = staticmethod(needs_memory(20))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.ask(batch)
            return super().training_step(batch, batch_idx)

    finder, data = BatchSizeFinder(mode="binsearch", margin=0.0), Rows(64)
    module, trainer = trained(finder, data=data, make=Heavier)
    assert (finder.optimal_batch_size, data.batch_size, data.hparams.batch_size) == (20, 20, 20)
    assert trainer.num_training_batches == 7
    same_outcome((module, trainer), trained(data=Rows(20), make=Heavier))


def test_schedulers_are_made_for_the_steps_that_the_found_size_leaves() -> None:
    class OneCycle(Noisy):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            steps = int(self.trainer.estimated_stepping_batches)
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
            return [optimizer], [{"scheduler": cycle, "interval": "step"}]

    finder = BatchSizeFinder(init_val=4, max_trials=2)
    _, trainer = trained(finder, data=Rows(64), make=OneCycle)
    assert finder.optimal_batch_size == 8
    assert trainer.schedules[0].scheduler.total_steps == trainer.global_step == 2 * 16


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_the_other_stages_find_a_size_of_their_own(stage: str) -> None:
    class Validated(Mlp):
        rows: list[int]

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            needs_memory(10)(batch)
            self.rows.append(len(batch[0]))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.validation_step(batch, batch_idx)
            return self(batch[0])

    module, data, finder = Validated(), Rows(3), BatchSizeFinder(mode="binsearch", margin=0.0, steps_per_trial=1)
    module.rows = []
    found = getattr(bare_trainer(callbacks=finder), stage)(module, datamodule=data)
    assert (finder.optimal_batch_size, data.batch_size) == (10, 10)
    assert module.rows == [10, 10, 10, 2]  # those of the trials are forgotten
    if stage == "predict":
        assert [len(batch) for batch in found] == [10, 10, 10, 2]


def test_a_resumed_run_keeps_the_size_that_was_found(tmp_path: Path) -> None:
    def run(name: str, seed: int, cut: bool, ckpt_path: str | None = None) -> Any:
        def stop(trainer: sl.Trainer, *_: Any) -> None:
            if cut and trainer.global_step == 10:
                raise RuntimeError("power cut")

        sl.seed_everything(seed)
        finder = BatchSizeFinder(init_val=4, max_trials=1 if ckpt_path is None else 3)
        callbacks = [finder, ModelCheckpoint(every_n_train_steps=7), on_hook("on_train_batch_start", stop)]
        module, data = Backbone(schedule=True), Rows(16)
        trainer = new_trainer(tmp_path, name=name, max_epochs=2, callbacks=callbacks)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module, data.batch_size

    whole, size = run("whole", 0, cut=False)
    with pytest.raises(RuntimeError, match="power cut"):
        run("parts", 0, cut=True)
    resumed, again = run("parts", 99, cut=False, ckpt_path="last")
    assert (size, again) == (4, 4)
    assert same_weights(resumed, whole)


def test_a_subclass_may_look_for_a_size_in_a_later_epoch() -> None:
    class Later(BatchSizeFinder):
        def on_fit_start(self, trainer: Any, module: Any) -> None: ...

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 1:
                self.scale_batch_size(trainer, module)

    _, trainer = trained(Later(init_val=32, max_trials=1))
    assert trainer.global_step == STEPS + 4


class NoSize(Rows):
    def __init__(self) -> None:
        super().__init__()
        del self.batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return train_loader(32)


class TooMuch(Mlp):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        needs_memory(0)(batch)


class Broken(Mlp):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise RuntimeError("a mistake in the step")


@pytest.mark.parametrize(
    ("module", "data", "options", "error", "message"),
    [
        (Mlp, NoSize, {}, ConfigError, r"'batch_size' is to be tuned, and is no attribute of Mlp, of the DataModule"),
        (Mlp, lambda: train_loader(32), {}, ConfigError, "needs loaders that can be made again: give a DataModule"),
        (TooMuch, Rows, {}, ConfigError, "has found no batch size that fits into memory, down from init_val=2"),
        (Broken, Rows, {}, RuntimeError, "a mistake in the step"),
        (Mlp, Rows, {"mode": "half"}, ConfigError, "has mode='half'; choose 'power' or 'binsearch'"),
        (Mlp, Rows, {"margin": 1.0}, ConfigError, r"has margin=1\.0; set a share from 0 on and below 1"),
        (Mlp, Rows, {"init_val": 0}, ConfigError, "has init_val=0; set 1 or more"),
    ],
)
def test_what_no_size_can_be_found_for(module: Any, data: Any, options: Any, error: Any, message: str) -> None:
    given = data()
    with pytest.raises(error, match=message):
        bare_trainer(max_epochs=1, callbacks=BatchSizeFinder(**options)).fit(module(), given)
    if isinstance(given, Rows) and hasattr(given, "batch_size"):
        assert given.batch_size == 16


# ---- the tuner -------------------------------------------------------------------------------------------------------


def test_the_tuner_finds_both_and_writes_nothing(tmp_path: Path) -> None:
    sl.seed_everything(0)
    trainer = new_trainer(tmp_path, max_epochs=1)
    before = {**vars(trainer)}
    module, data = Noisy(), Rows()
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    tuner = Tuner(trainer)
    found = tuner.lr_find(module, datamodule=data, num_training=30)
    assert found is not None
    assert module.lr == found.suggestion() != 0.1
    assert tuner.scale_batch_size(module, datamodule=data, max_trials=3, init_val=4) == data.batch_size == 16
    assert tuner.scale_batch_size(module, datamodule=data, method="validate", max_trials=1) == data.batch_size == 2
    assert same_tree(weights, module.state_dict())
    assert module.steps == 0
    assert vars(trainer) == before
    assert list(tmp_path.iterdir()) == []
    assert module.trainer is trainer
    trainer.fit(module, data)
    assert trainer.global_step == 8 * STEPS


def test_the_tuners_search_is_the_callbacks() -> None:
    def search(by_tuner: bool) -> Any:
        sl.seed_everything(0)
        module, finder = Noisy(), LearningRateFinder(num_training_steps=30)
        if by_tuner:
            return Tuner(bare_trainer(max_epochs=1)).lr_find(module, Rows(), num_training=30)
        bare_trainer(max_epochs=1, callbacks=finder).fit(module, Rows())
        return finder.optimal_lr

    assert search(by_tuner=True).results == search(by_tuner=False).results


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "test"}, "lr_find has method='test'; a learning rate is found for 'fit' only"),
        ({"dataloaders": train_loader(32)}, "give train_dataloaders and val_dataloaders, not dataloaders"),
    ],
)
def test_what_the_tuner_cannot_do(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tuner(bare_trainer(max_epochs=1)).lr_find(Mlp(), **arguments)


def test_the_tuner_of_several_workers_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="Tuner works in this process, and its Trainer has workers=2"):
        Tuner(bare_trainer(max_epochs=1, workers=2)).lr_find(Mlp(), train_loader(32))


def test_rows_of_an_iterable_dataset_are_nobody_knows_how_many() -> None:
    """The search then ends with the largest size to try."""

    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(rows(0, 64))

    class Streamed(Rows):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(Stream(), self.batch_size)

    data = Streamed()
    bare_trainer(max_epochs=1, callbacks=BatchSizeFinder(max_val=50)).fit(Mlp(), data)
    assert data.batch_size == 50
