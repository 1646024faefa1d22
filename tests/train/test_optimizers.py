"""`configure_optimizers`: every form of Lightning's, and when schedulers step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, ReduceLROnPlateau, StepLR
from training import Scripted, bare_trainer, numbers, on_hook

from shipline.errors import ConfigError
from shipline.train.loops.schedules import parse_optimizers

OPTIMIZER = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
STEP = StepLR(OPTIMIZER, 1)
PLATEAU = ReduceLROnPlateau(OPTIMIZER)


@pytest.mark.parametrize(
    ("returned", "schedulers"),
    [
        (OPTIMIZER, []),
        ([OPTIMIZER], []),
        ((OPTIMIZER,), []),
        (([OPTIMIZER], []), []),
        (([OPTIMIZER], [STEP]), [STEP]),
        ([[OPTIMIZER], [STEP]], [STEP]),
        (([OPTIMIZER], STEP), [STEP]),
        (([OPTIMIZER], {"scheduler": STEP}), [STEP]),
        (([OPTIMIZER], [{"scheduler": STEP, "interval": "step"}, STEP]), [STEP, STEP]),
        ({"optimizer": OPTIMIZER}, []),
        ({"optimizer": OPTIMIZER, "lr_scheduler": STEP}, [STEP]),
        ({"optimizer": OPTIMIZER, "lr_scheduler": {"scheduler": STEP, "frequency": 2}}, [STEP]),
        ([{"optimizer": OPTIMIZER, "lr_scheduler": STEP}], [STEP]),
        ({"optimizer": OPTIMIZER, "lr_scheduler": PLATEAU, "monitor": "val_loss"}, [PLATEAU]),
    ],
)
def test_every_form_that_may_be_returned(returned: Any, schedulers: list[Any]) -> None:
    [optimizer], schedules = parse_optimizers(returned)
    assert optimizer is OPTIMIZER
    assert [schedule.scheduler for schedule in schedules] == schedulers


def test_the_settings_of_a_scheduler() -> None:
    settings = {"scheduler": STEP, "interval": "step", "frequency": 3, "monitor": "x", "strict": False, "name": "lr"}
    [schedule] = parse_optimizers({"optimizer": OPTIMIZER, "lr_scheduler": settings})[1]
    assert vars(schedule) == settings | {"reduce_on_plateau": False}
    [default] = parse_optimizers(([OPTIMIZER], [STEP]))[1]
    assert (default.interval, default.frequency, default.strict) == ("epoch", 1, True)
    [named] = parse_optimizers({"optimizer": OPTIMIZER, "lr_scheduler": PLATEAU, "monitor": "val_loss"})[1]
    assert named.monitor == "val_loss"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([], "Optimizers are needed; got none: return an optimizer"),
        ("sgd", "Optimizers are needed; got str"),
        ((OPTIMIZER, STEP), "Optimizers are needed; got SGD, StepLR"),
        ({"lr_scheduler": STEP}, "returned a dict without 'optimizer'"),
        (
            {"optimizer": OPTIMIZER, "lr_schedular": STEP},
            "configure_optimizers has no setting 'lr_schedular'. Did you mean 'lr_scheduler'",
        ),
        (
            {"optimizer": OPTIMIZER, "lr_scheduler": {"scheduler": STEP, "intervall": "step"}},
            "lr_scheduler has no setting 'intervall'. Did you mean 'interval'.* Known: scheduler, interval, frequency",
        ),
        ({"optimizer": OPTIMIZER, "lr_scheduler": {"interval": "step"}}, "lr_scheduler has no 'scheduler'"),
        (([OPTIMIZER], [OPTIMIZER]), "lr_scheduler is a SGD, which is no learning rate scheduler"),
        (([OPTIMIZER], [{"scheduler": STEP, "interval": "batch"}]), "interval='batch'; choose 'epoch' or 'step'"),
        (([OPTIMIZER], [{"scheduler": STEP, "frequency": 0}]), "frequency=0; set a whole number from 1 on"),
        (([OPTIMIZER], [PLATEAU]), "ReduceLROnPlateau needs a metric"),
    ],
)
def test_forms_that_are_refused(returned: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_optimizers(returned)


class Scheduled(Scripted):
    """Trains with a scheduler made by `make`, with settings; notes the learning rate of every step."""

    def __init__(self, make: Callable[[Optimizer], Any], scores: list[float] | None = None, **settings: Any) -> None:
        super().__init__(scores or [])
        self.make = make
        self.settings = settings
        self.rates: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.rates.append(self.trainer.optimizer.param_groups[0]["lr"])
        self.log("train_score", float(self.trainer.global_step))
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=1.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make(optimizer), **self.settings}}


def halves(optimizer: Optimizer) -> ExponentialLR:
    return ExponentialLR(optimizer, 0.5)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"frequency": 2}, [1, 1, 1, 1, 0.5, 0.5]),
        ({"interval": "step"}, [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        ({"interval": "step", "frequency": 2}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ],
)
def test_when_a_scheduler_steps(settings: dict[str, Any], rates: list[float]) -> None:
    module = Scheduled(halves, **settings)
    bare_trainer(max_epochs=3).fit(module, numbers(2))
    assert module.rates == rates


def test_schedulers_step_as_pytorch_says_after_the_optimizer() -> None:
    """The other order makes PyTorch warn, which is an error here; warm-up by LambdaLR begins with its first value."""
    module = Scheduled(lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4)), interval="step")
    bare_trainer(max_epochs=1).fit(module, numbers(5))
    assert module.rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_validation_of_an_epoch_sees_the_rate_after_it() -> None:
    seen: list[float] = []
    look = on_hook("on_validation_start", lambda trainer, _m: seen.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer = bare_trainer(max_epochs=2, num_sanity_val_steps=0, callbacks=look)
    trainer.fit(Scheduled(halves), numbers(2), numbers(1))
    assert seen == [0.5, 0.25]


def plateau(optimizer: Optimizer) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


@pytest.mark.parametrize(
    ("settings", "every", "rates"),
    [
        ({}, 1, [1, 1, 1, 0.5]),
        ({"frequency": 2}, 1, [1, 1, 1, 1]),
        ({}, 2, [1, 1, 1, 0.5]),  # as in Lightning: in the third epoch by the validation of the second
        ({"monitor": "train_score", "interval": "step"}, 1, [1, 1, 0.5, 0.25]),
        ({"monitor": "scor", "strict": False}, 1, [1, 1, 1, 1]),
    ],
)
def test_reduce_on_plateau_steps_on_its_metric(settings: dict[str, Any], every: int, rates: list[float]) -> None:
    """Scores of three epochs: better, worse, worse."""
    module = Scheduled(plateau, [1.0, 0.5, 0.6, 0.7], **({"monitor": "score"} | settings))
    trainer = bare_trainer(max_epochs=4, check_val_every_n_epoch=every, num_sanity_val_steps=0)
    trainer.fit(module, numbers(1), numbers(1))
    assert module.rates == rates


def test_a_metric_that_nobody_logged_names_the_nearest() -> None:
    module = Scheduled(plateau, [1.0], monitor="scores")
    with pytest.raises(
        ConfigError, match=r"lr_scheduler monitors 'scores', which nobody logged. Did you mean 'score'.* Logged: "
    ):
        bare_trainer(max_epochs=1).fit(module, numbers(1), numbers(1))


def test_several_schedulers_step_each_in_its_own_time() -> None:
    class Both(Scheduled):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=1.0)
            fast = {"scheduler": ExponentialLR(optimizer, 0.5), "interval": "step"}
            return [optimizer], [fast, ExponentialLR(optimizer, 0.1)]

    module = Both(halves)
    bare_trainer(max_epochs=2).fit(module, numbers(2))
    assert all(math.isclose(a, b) for a, b in zip(module.rates, [1, 0.5, 0.025, 0.0125], strict=True))
