"""What the Trainer cannot run as it is meant is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training import Mlp, new_trainer, train_loader

import shipline as sl
from shipline.errors import ConfigError


@pytest.mark.parametrize("entry", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Linear(2, 2), r"A Trainer needs a shipline\.Module or a LightningModule; got Linear"),
        (sl.DataModule(), r"A Trainer needs a shipline\.Module or a LightningModule; got DataModule"),
    ],
)
def test_what_the_trainer_would_leave_out_is_refused(tmp_path: Path, entry: str, model: Any, message: str) -> None:
    trainer = new_trainer(tmp_path)
    with pytest.raises(ConfigError, match=message):
        getattr(trainer, entry)(model, train_loader())
    assert not any(tmp_path.iterdir())


def test_a_datamodule_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"datamodule is a Linear; derive its class from shipline\.DataModule"):
        new_trainer(tmp_path).fit(Mlp(), datamodule=torch.nn.Linear(2, 2))  # type: ignore[arg-type]
