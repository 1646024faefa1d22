"""The batch size that trials find, and what it changes afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import pytorch_lightning.callbacks as theirs
import torch
from callback_checks import STEPS, Backbone, quiet_lightning
from lightning_digits import LightningDigits
from torch.utils.data import DataLoader
from training import Mlp, bare_trainer, new_trainer, on_hook, rows, same_weights, train_loader
from trials import QUIET, Noisy, Rows, same_outcome, trained

import shipline as sl
from shipline.errors import ConfigError
from shipline.train import BatchSizeFinder, ModelCheckpoint

# Lightning warns of few data workers, of no logger, and of its own future.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_collection")]


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
