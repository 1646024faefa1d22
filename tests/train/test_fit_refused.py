"""What cannot be trained, and what the message says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from training import (
    Scripted,
    bare_trainer,
    numbers,
)

import shipline as sl
from shipline.errors import ConfigError
from shipline.train import Callback, DataModule


class NoStep(sl.Module):
    pass


class NoOptimizer(sl.Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return batch


class NoBatch(Scripted):
    def training_step(self) -> Any:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (NoStep(), "NoStep has no configure_optimizers: return an optimizer from it"),
        (NoOptimizer(), "NoOptimizer has no configure_optimizers"),
        (NoBatch(), r"NoBatch\.training_step takes no batch: define training_step\(self, batch, batch_idx\)"),
    ],
)
def test_a_module_that_lacks_something(module: sl.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=1).fit(module, numbers(1))


def test_a_module_without_a_training_step() -> None:
    class OnlyOptimizer(NoStep):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    with pytest.raises(ConfigError, match="OnlyOptimizer has no training_step"):
        bare_trainer(max_epochs=1).fit(OnlyOptimizer(), numbers(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": -2}, "max_epochs=-2; set a whole number from -1 on"),
        ({"max_steps": -2}, "max_steps=-2"),
        ({"workers": 0}, "workers=0; set a whole number from 1 on"),
        ({"limit_train_batches": -1}, "limit_train_batches=-1"),
        ({"limit_val_batches": 1.5}, r"limit_val_batches=1\.5"),
        ({"log_every_n_steps": -1}, "log_every_n_steps=-1"),
        ({"max_epoch": 3}, r"Trainer has no option 'max_epoch'\. Did you mean 'max_epochs'\?"),
        ({"check_val_every_n_epoch": True}, "check_val_every_n_epoch=True"),
        ({"callbacks": [object()]}, r"callbacks has a object, which is no shipline\.train\.Callback"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(**options)


def test_callbacks_that_would_share_a_state_are_refused() -> None:
    class Counter(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"n": 0}

    with pytest.raises(ConfigError, match=r"keep their state under one name .*Counter.*different state_keys"):
        bare_trainer(callbacks=[Counter(), Counter()])


class Data(DataModule):
    def train_dataloader(self) -> Any:
        return numbers(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "There is no data: give a DataModule or a DataLoader"),
        ({"train_dataloaders": numbers(1), "datamodule": Data()}, "Give loaders or a datamodule, not both"),
        ({"val_dataloaders": numbers(1), "datamodule": Data()}, "Give loaders or a datamodule, not both"),
        ({"train_dataloaders": Data(), "val_dataloaders": numbers(1)}, "Give loaders or a datamodule, not both"),
        ({"val_dataloaders": numbers(1)}, "There is no data to train on: give train_dataloaders"),
        ({"datamodule": DataModule()}, "DataModule has no train_dataloader: return a DataLoader from it"),
    ],
)
def test_data_that_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=1).fit(Scripted(), **arguments)
