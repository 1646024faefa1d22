"""Learning rates of every batch, and when validation runs and training ends, beside Lightning's."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from beside_lightning import side_by_side
from pytorch_lightning.utilities import CombinedLoader as LightningsCombinedLoader
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from training import bare_trainer, numbers

import shipline as sl
from shipline.errors import ConfigError
from shipline.train.data import CombinedLoader

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quiet_lightning")]  # Lightning's

SCORES = (3.0, 2.0, 2.5, 2.6, 1.0, 1.5, 1.6, 1.7)


class Clock:
    """Goes on by a second with each training step."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


def module(base: Any, configure: Callable[[Any, Optimizer], Any], clock: Clock | None = None) -> Any:
    """A module that notes each step, and the learning rate of training steps."""

    class Notes(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.seen: list[tuple[Any, ...]] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            rate = self.optimizers().param_groups[0]["lr"]
            self.seen.append(("train", self.current_epoch, batch_idx, self.global_step, rate))
            self.log("falls", 1 / (1 + self.global_step), on_step=True, on_epoch=True)
            if clock is not None:
                clock.now += 1
            return (self.weight * batch[0]).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(("validate", self.current_epoch, batch_idx, self.global_step))
            self.log("score", SCORES[self.current_epoch])

        def configure_optimizers(self) -> Any:
            return configure(self, SGD(self.parameters(), lr=1.0))

    return Notes()


def assert_same(configure: Callable[[Any, Optimizer], Any], **options: Any) -> list[tuple[Any, ...]]:
    """Both trainers do the same in the same order; returns it."""

    def run(trainer: Any, module: Any) -> None:
        trainer.fit(module, numbers(5), numbers(2))
        module.seen.append(("end", trainer.global_step, trainer.current_epoch))

    options = {"max_epochs": 3, "num_sanity_val_steps": 0} | options
    theirs, ours = side_by_side(lambda base: module(base, configure), run, **options)
    assert ours.seen == theirs.seen
    seen: list[tuple[Any, ...]] = ours.seen
    return seen


def rates(seen: list[tuple[Any, ...]]) -> list[float]:
    return [row[4] for row in seen if row[0] == "train"]


# ---- schedules -------------------------------------------------------------------------------------------------------


def scheduled(make: Callable[..., Any], **settings: Any) -> Callable[[Any, Optimizer], Any]:
    def configure(module: Any, optimizer: Optimizer) -> Any:
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(module, optimizer), **settings}}

    return configure


def warm_up(_module: Any, optimizer: Optimizer) -> SequentialLR:
    parts = [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, 5)]
    return SequentialLR(optimizer, parts, milestones=[3])  # type: ignore[arg-type]


def one_cycle(module: Any, optimizer: Optimizer) -> OneCycleLR:
    return OneCycleLR(optimizer, 1.0, total_steps=int(module.trainer.estimated_stepping_batches))


def plateau(_module: Any, optimizer: Optimizer) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


def halves(_module: Any, optimizer: Optimizer) -> ExponentialLR:
    return ExponentialLR(optimizer, 0.5)


@pytest.mark.parametrize(
    ("make", "settings", "options"),
    [
        (warm_up, {"interval": "step"}, {}),
        (warm_up, {"interval": "step"}, {"accumulate_grad_batches": 2}),
        (one_cycle, {"interval": "step"}, {}),
        (one_cycle, {"interval": "step"}, {"accumulate_grad_batches": 2}),
        (one_cycle, {"interval": "step"}, {"max_epochs": -1, "max_steps": 7}),
        (one_cycle, {"interval": "step"}, {"limit_train_batches": 3}),
        (one_cycle, {"interval": "step"}, {"limit_train_batches": 0.5}),
        (plateau, {"monitor": "score"}, {"max_epochs": 5}),
        (plateau, {"monitor": "score", "frequency": 2}, {"max_epochs": 6}),
        (plateau, {"monitor": "falls_epoch"}, {}),
        (plateau, {"monitor": "falls", "interval": "step", "frequency": 2}, {}),
        (plateau, {"monitor": "score", "interval": "step", "frequency": 2}, {"val_check_interval": 2}),
        (halves, {"frequency": 3}, {"max_epochs": 7}),
        (halves, {"interval": "step", "frequency": 2}, {"accumulate_grad_batches": 2}),
    ],
)
def test_learning_rates_are_those_of_lightning(make: Any, settings: Any, options: Any) -> None:
    found = rates(assert_same(scheduled(make, **settings), **options))
    assert len(set(found)) > 1 or settings.get("monitor", "").startswith("falls")


def test_a_metric_that_may_be_missing_leaves_the_rate() -> None:
    configure = scheduled(plateau, monitor="never", strict=False)
    assert set(rates(assert_same(configure))) == {1.0}


# ---- when validation runs, when training ends ------------------------------------------------------------------------


def plain(_module: Any, optimizer: Optimizer) -> Optimizer:
    return optimizer


@pytest.mark.parametrize(
    "options",
    [
        {"val_check_interval": 2},
        {"val_check_interval": 7, "check_val_every_n_epoch": None},
        {"val_check_interval": 3, "check_val_every_n_epoch": None, "accumulate_grad_batches": 2},
        {"val_check_interval": 0.5},
        {"val_check_interval": 0.3},
        {"val_check_interval": 0.25, "check_val_every_n_epoch": 2, "max_epochs": 4},
        {"min_steps": 7, "max_epochs": 5},
        {"max_steps": 4, "accumulate_grad_batches": 2},
        {"max_epochs": -1, "max_steps": 11},
        {"max_epochs": 2, "max_steps": 10},
        {"max_epochs": 0},
        {"max_steps": 0},
    ],
    ids=str,
)
def test_validation_and_the_end_come_when_they_do_in_lightning(options: dict[str, Any]) -> None:
    assert_same(plain, **options)


@pytest.mark.parametrize("interval", [timedelta(seconds=4), "00:00:00:04", {"seconds": 4}])
@pytest.mark.parametrize("every", [1, None])
def test_validation_by_time_comes_when_it_does_in_lightning(
    interval: Any, every: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)

    def run(trainer: Any, module: Any) -> None:
        clock.now = 0.0
        trainer.fit(module, numbers(5), numbers(1))

    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "val_check_interval": interval}
    make = lambda base: module(base, plain, clock)  # noqa: E731
    theirs, ours = side_by_side(make, run, check_val_every_n_epoch=every, **options)
    assert ours.seen == theirs.seen
    assert [row[3] for row in ours.seen if row[0] == "validate"] == [4, 8, 12]


@pytest.mark.parametrize(
    "options",
    [{"min_epochs": 3}, {"min_steps": 7}, {"min_epochs": 1, "min_steps": 8}, {"min_epochs": 2, "max_steps": 7}],
    ids=str,
)
def test_who_asks_to_stop_waits_as_in_lightning(options: dict[str, Any]) -> None:
    """Asked in the second batch, both go on until the least is done."""

    def make(base: Any) -> Any:
        class Stops(type(module(base, plain))):  # type: ignore[misc]
            def on_train_batch_end(self, _outputs: Any, _batch: Any, batch_idx: int) -> None:
                self.trainer.should_stop |= batch_idx == 1

        return Stops()

    def run(trainer: Any, module: Any) -> None:
        trainer.fit(module, numbers(5), numbers(1))
        module.seen.append((trainer.global_step, trainer.current_epoch))

    theirs, ours = side_by_side(make, run, max_epochs=6, num_sanity_val_steps=0, **options)
    assert ours.seen == theirs.seen


# ---- several loaders -------------------------------------------------------------------------------------------------


def taking(base: Any) -> Any:
    """A module that notes the batches it is given."""

    class Takes(type(module(base, plain))):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append(("train", batch_idx, noted(batch)))
            return self.weight.sum()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.seen.append(("validate", batch_idx, dataloader_idx, noted(batch)))

    return Takes()


def noted(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: noted(item) for name, item in batch.items()}
    if isinstance(batch, list | tuple):
        return [noted(item) for item in batch]
    return None if batch is None else batch.tolist()


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
@pytest.mark.parametrize("make", [LightningsCombinedLoader, CombinedLoader], ids=["lightnings", "ours"])
@pytest.mark.parametrize("limit", [None, 2])
def test_several_loaders_give_what_they_do_in_lightning(mode: str, make: Any, limit: int | None) -> None:
    """Lightning's own CombinedLoader is taken by both."""

    def run(trainer: Any, module: Any) -> None:
        ours = isinstance(trainer, sl.Trainer)
        cls = make if ours else LightningsCombinedLoader
        trainer.fit(module, *(cls({"a": numbers(4), "b": [numbers(2), numbers(3)]}, mode) for _ in range(2)))

    theirs, ours = side_by_side(
        taking, run, max_epochs=2, num_sanity_val_steps=0, limit_train_batches=limit, limit_val_batches=limit
    )
    assert ours.seen == theirs.seen


@pytest.mark.parametrize("make", [LightningsCombinedLoader, CombinedLoader, lambda loaders, _mode: loaders])
def test_one_loader_after_the_other_is_for_evaluation(make: Any) -> None:
    def run(trainer: Any, module: Any) -> None:
        ours = isinstance(trainer, sl.Trainer)
        combined = (make if ours else LightningsCombinedLoader)([numbers(2), numbers(3)], "sequential")
        trainer.validate(module, combined, verbose=False)

    theirs, ours = side_by_side(taking, run)
    assert ours.seen == theirs.seen
    assert len(ours.seen) == 5
    if make is not LightningsCombinedLoader:
        return
    with pytest.raises(ConfigError, match="give CombinedLoader another mode than 'sequential'"):
        bare_trainer(max_epochs=1).fit(taking(sl.Module), make([numbers(2)], "sequential"))


def test_overfitting_takes_the_first_rows_of_several_loaders() -> None:
    loaders = CombinedLoader([numbers(9), torch.utils.data.DataLoader(numbers(9).dataset, shuffle=True)], "min_size")
    found = taking(sl.Module)
    bare_trainer(max_epochs=1, overfit_batches=2).fit(found, loaders)
    assert found.seen == [("train", 0, [[[0.0]], [[0.0]]]), ("train", 1, [[[1.0]], [[1.0]]])]
