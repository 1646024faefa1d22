"""Lightning modules of others run unchanged, and learn exactly what Lightning's own Trainer has them learn."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from lightning_modules import MODULES, Made

import shipline as sl

pytestmark = pytest.mark.filterwarnings("ignore")  # what these packages warn of is theirs


@pytest.fixture(autouse=True)
def what_packages_set() -> Iterator[None]:
    """Some set environment variables when they are imported, or seed."""
    with patch.dict(os.environ):
        yield


@pytest.mark.parametrize("make", MODULES, ids=lambda make: make.__name__)
def test_losses_metrics_and_weights_are_lightnings(make: Callable[[], Made], tmp_path: Path) -> None:
    theirs, ours = (_fit(make, tmp_path, own=own) for own in (False, True))
    assert len(theirs["losses"]) >= 4
    assert ours["losses"] == theirs["losses"]
    assert ours["steps"] == theirs["steps"]
    assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-6, nan_ok=True)
    assert ours["weights"].keys() == theirs["weights"].keys()
    for name, weight in theirs["weights"].items():
        assert torch.equal(weight, ours["weights"][name]), name


def _fit(make: Callable[[], Made], directory: Path, own: bool) -> dict[str, Any]:
    """Fit by our Trainer or by that of the Lightning which the module comes from; a callback of its watches."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1)
    module, arguments = make()
    lightning = importlib.import_module(_lightning_of(module))
    seen: dict[str, Any] = {"losses": [], "steps": []}

    class Watch(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_end(self, trainer: Any, _module: Any, outputs: Any, _batch: Any, batch_idx: int) -> None:
            seen["losses"].append(float(outputs["loss"]) if outputs else None)
            seen["steps"].append((trainer.current_epoch, trainer.global_step, batch_idx))

    trainer = (sl.Trainer if own else lightning.Trainer)(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_checkpointing=False, callbacks=[Watch()],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(directory),
    )  # fmt: skip
    trainer.fit(module, **arguments)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return seen | {"metrics": metrics, "weights": module.state_dict()}


def _lightning_of(module: Any) -> str:
    packages = {base.__module__.partition(".")[0] for base in type(module).__mro__}
    return "pytorch_lightning" if "pytorch_lightning" in packages else "lightning.pytorch"
