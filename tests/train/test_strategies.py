"""How workers work together: one alone, and what a run takes by name or as an object. Several: test_ddp.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from strategy_conformance import StrategyConformance
from training import Mlp, bare_trainer, train_loader

import shipline as sl
from shipline.errors import ConfigError, UnknownNameError
from shipline.train.strategies import Ddp, Strategy, pick_strategy
from shipline.train.strategies.ddp import DdpFindUnusedParameters


class TestStrategy(StrategyConformance):
    @pytest.fixture
    def strategy(self) -> Strategy:
        return Strategy()


class Counted(Strategy):
    """Counts the steps that it runs."""

    steps = 0

    def training_step(self, module: Any) -> Callable[..., Any]:
        step = super().training_step(module)

        def counted(batch: Any, batch_idx: int) -> Any:
            self.steps += 1
            return step(batch, batch_idx)

        return counted


def test_a_strategy_of_the_users_own_runs_the_steps() -> None:
    strategy = Counted()
    trainer = bare_trainer(max_epochs=2, strategy=strategy)
    trainer.fit(Mlp(), train_loader(128))
    assert trainer.strategy is strategy
    assert strategy.steps == 8


@pytest.mark.parametrize(
    ("name", "workers", "kind"),
    [
        ("auto", 1, Strategy), ("auto", 2, Ddp), ("ddp", 2, Ddp), ("ddp", 1, Strategy), ("single_device", 1, Strategy),
        ("ddp_find_unused_parameters_true", 2, DdpFindUnusedParameters), ("ddp_find_unused_parameters_false", 2, Ddp),
    ],
)  # fmt: skip
def test_names(name: str, workers: int, kind: type[Strategy]) -> None:
    """One that joins workers is of no use to one alone, who has no process group."""
    assert type(pick_strategy(name, workers)) is kind


def test_a_run_of_one_worker_needs_no_process_group() -> None:
    for strategy in ("ddp", Ddp(find_unused_parameters=True)):
        trainer = bare_trainer(max_steps=1, strategy=strategy)
        trainer.fit(Mlp(), train_loader(32))
        assert trainer.world_size == 1


def test_strategies_that_are_none() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown strategy 'ddpp'\. Did you mean 'ddp'\? Known: auto, ddp, "):
        sl.Trainer(strategy="ddpp")
    with pytest.raises(ConfigError, match=r"strategy is a int, which is no shipline\.train\.strategies\.Strategy"):
        sl.Trainer(strategy=3)  # type: ignore[arg-type]
