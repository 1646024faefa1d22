"""The tuner: what the finders find, without a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from callback_checks import STEPS, same_tree
from training import Mlp, bare_trainer, new_trainer, train_loader
from trials import Noisy, Rows

import shipline as sl
from shipline.errors import ConfigError
from shipline.train import LearningRateFinder, Tuner

# Lightning warns of few data workers, of no logger, and of its own future.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_collection")]


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
