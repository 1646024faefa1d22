"""The same run by Lightning's Trainer and by ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from training import bare_trainer

import shipline as sl

METRICS = ("callback_metrics", "logged_metrics", "progress_bar_metrics")


def lightning_trainer(**options: Any) -> Any:
    """A `pytorch_lightning.Trainer` on the CPU that prints nothing and, unless it is told to, keeps nothing."""
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(accelerator="cpu", **(quiet | {"enable_model_summary": False} | options))


def side_by_side(make: Callable[[Any], Any], run: Callable[[Any, Any], Any], **options: Any) -> list[Any]:
    """Run a module of either base class with either Trainer, from one seed; return the modules, Lightning's first.

    Args:
        make: returns a module of a class derived from what it is given.
        run: is given Trainer and module.
        options: of both Trainers.
    """
    modules = []
    for base, trainer in ((lightning.LightningModule, lightning_trainer), (sl.Module, bare_trainer)):
        torch.manual_seed(0)
        module = make(base)
        run(trainer(**options), module)
        modules.append(module)
    return modules


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics as numbers that may differ in the last digits of single precision."""
    return {name: pytest.approx(float(value), rel=1e-5, abs=1e-6) for name, value in metrics.items()}
