"""Trials, and what they leave: nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from callback_checks import same_tree
from training import on_hook
from trials import Noisy, same_outcome, trained

import shipline as sl
from shipline.train import LearningRateFinder
from shipline.train.trials.snapshot import Snapshot
from shipline.train.trials.trial import train_steps, trial

# Lightning warns of few data workers, of no logger, and of its own future.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_collection")]


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
