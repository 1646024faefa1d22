"""What every callback that changes training must do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_checks import Backbone, check_exact_resume, fit, same_tree
from torch.utils.data import DataLoader
from training import bare_trainer, on_hook, rows, same_weights

import shipline as sl
from shipline import plugins, train
from shipline.errors import ConfigError
from shipline.train import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelPruning,
    OnlineEvaluator,
    QuantizationAwareTraining,
    StochasticWeightAveraging,
    WeightAveraging,
)
from shipline.train.checkpoints.image import Image
from shipline.train.checkpoints.tree import decode_tree, encode_tree, read_tensors


class FirstLayerLater(BaseFinetuning):
    """A user's own schedule."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone[0])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone[0], optimizer)


Make = Callable[[], Callback]
FACTORIES: dict[str, Make] = {
    "BackboneFinetuning": lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1),
    "BaseFinetuning": FirstLayerLater,
    "BatchSizeFinder": lambda: BatchSizeFinder(max_trials=2, steps_per_trial=1),
    "EMAWeightAveraging": lambda: EMAWeightAveraging(decay=0.9),
    "LearningRateFinder": lambda: LearningRateFinder(num_training_steps=20),
    "ModelPruning": lambda: ModelPruning("l1_unstructured", amount=0.2),
    "OnlineEvaluator": lambda: OnlineEvaluator(z_dim=10, num_classes=10, hidden_dim=8),
    "QuantizationAwareTraining": QuantizationAwareTraining,
    "StochasticWeightAveraging": lambda: StochasticWeightAveraging(0.05, swa_epoch_start=1),
    "WeightAveraging": WeightAveraging,
}
each = pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)


class Rows(sl.DataModule):
    """Digits in batches of a size that can be found."""

    def __init__(self, batch_size: int = 16) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(0, 64), self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(1400, 1432), self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


class Predicts(Backbone):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])


def run(callback: Callback, module: sl.Module, **options: Any) -> sl.Trainer:
    """Two epochs, the same each time."""
    sl.seed_everything(0)
    trainer = bare_trainer(**{"max_epochs": 2, "callbacks": callback} | options)
    trainer.fit(module, Rows())
    return trainer


def module() -> Predicts:
    torch.manual_seed(0)
    return Predicts(schedule=True)


def travelled(callback: Callback) -> Any:
    """What a worker would get."""
    return pickle.loads(pickle.dumps(callback))  # noqa: S301 -- our own


def test_all_of_them_are_here() -> None:
    assert set(FACTORIES) <= set(plugins.BUILT_IN["callback"])
    for name in FACTORIES:
        assert plugins.load("callback", name) is getattr(train, name) is getattr(train.callbacks, name)


@each
def test_its_state_comes_back_from_a_checkpoint(make: Make) -> None:
    """While it trains, where the state holds most."""
    callback, states = make(), []

    def look(*_: Any) -> None:
        state = {callback.state_key: callback.state_dict()}
        structure, tensors = encode_tree(state)
        states.append((copy.deepcopy(state), decode_tree(structure, read_tensors(bytes(Image().fill(tensors))))))

    run(callback, module(), callbacks=[callback, on_hook("on_train_epoch_end", look)])
    assert len(states) == 2
    for state, again in states:
        assert again[callback.state_key]
        assert same_tree(state, again)


@each
def test_it_travels_to_workers_and_back(make: Make) -> None:
    """Before the fit, and after it; and then does what the one that stayed does."""
    callback = travelled(make())
    other, mine = module(), module()
    run(callback, other)
    run(travelled(callback), mine)
    assert same_weights(other, mine)


@each
def test_two_fits_in_a_row_are_two_equal_fits(make: Make) -> None:
    """And neither module keeps anything of it."""
    callback, modules = make(), [module(), module()]
    for given in modules:
        trainer = run(callback, given)
        assert trainer.progress.epochs_done == 2
    assert same_weights(*modules)
    plain = dict(module().named_modules())
    for name, part in modules[1].named_modules():
        left = {key for key in vars(part) if key not in vars(plain[name])} - {"_trainer_ref"}
        assert left == set(), name
        assert not part._forward_pre_hooks
        assert not part._forward_hooks
        assert part.training == plain[name].training
        assert vars(part)["_buffers"].keys() == vars(plain[name])["_buffers"].keys()


@each
def test_it_goes_through_every_stage_and_a_fast_try(make: Make) -> None:
    callback, given = make(), module()
    run(callback, given, fast_dev_run=True)
    trainer, data = bare_trainer(max_epochs=1, callbacks=callback), Rows()
    for stage in ("validate", "test", "predict"):
        before = {name: value.clone() for name, value in given.state_dict().items()}
        assert getattr(trainer, stage)(given, datamodule=data)
        assert same_tree(before, given.state_dict())


@each
def test_a_fit_that_fails_leaves_the_next_one_alone(tmp_path: Path, make: Make) -> None:
    def fail(trainer: sl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("a mistake")

    callback = make()
    with pytest.raises(RuntimeError, match="a mistake"):
        run(callback, module(), callbacks=[callback, on_hook("on_train_batch_start", fail)])
    after, undisturbed = module(), module()
    run(callback, after)
    run(make(), undisturbed)
    assert same_weights(after, undisturbed)


@each
def test_an_unknown_option_is_named(make: Make) -> None:
    kind: Any = type(make())
    with pytest.raises(ConfigError, match=f"{kind.__name__} has no option 'nonsense'"):
        kind(nonsense=1)


def test_all_at_once_resume_exactly(tmp_path: Path) -> None:
    """Each keeps out of the others' way."""

    class Several(Callback):
        """Stands for them in the comparison of states."""

    together = ("BackboneFinetuning", "EMAWeightAveraging", "OnlineEvaluator", "QuantizationAwareTraining")
    made: list[list[Callback]] = []

    class WithCallbacks(Backbone):
        def configure_callbacks(self) -> Any:
            made.append([FACTORIES[name]() for name in together])
            return made[-1]

    check_exact_resume(tmp_path, lambda: WithCallbacks(schedule=True), Several, 21)
    assert len(made) == 3
    for one, other in zip(made[0], made[2], strict=True):
        assert same_tree(one.state_dict(), other.state_dict())


def test_the_comparison_of_trees_sees_differences() -> None:
    """What the tests rest upon."""
    tree = {"a": [1, (2.0, None)], "b": torch.arange(3)}
    assert same_tree(tree, copy.deepcopy(tree))
    for other in ({"a": [1, (2.0, 1)], "b": torch.arange(3)}, {"a": [1], "b": torch.arange(3)}, {**tree, "b": None}):
        assert not same_tree(tree, other)
    assert not same_tree(tree, {**tree, "b": torch.tensor([0, 1, 3])})
    assert not same_tree({"a": 1}, {"a": True})


def test_a_checkpoint_of_one_callback_begins_another_anew(tmp_path: Path) -> None:
    """Nothing of a run without the callback keeps it from being added later."""
    first = fit(tmp_path, Backbone(), epochs=2)
    assert first.checkpoint_callback is not None
    for name, make in FACTORIES.items():
        if name in ("BatchSizeFinder", "BaseFinetuning", "BackboneFinetuning"):  # other loaders, other optimizer groups
            continue
        trainer = bare_trainer(max_epochs=3, callbacks=make())
        trainer.fit(Backbone(), Rows(), ckpt_path=first.checkpoint_callback.last_model_path)
        assert trainer.epochs_done == 3, name
