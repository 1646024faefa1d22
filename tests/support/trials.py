"""What a trial could leave behind in a module and in its data, and how to see whether it did."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from callback_checks import STEPS, Backbone, same_tree
from torch.utils.data import DataLoader
from training import bare_trainer, rows, same_weights

import shipline as sl

#: What makes a Trainer, ours or Lightning's, say and keep nothing.
QUIET: dict[str, Any] = {
    "enable_progress_bar": False, "enable_model_summary": False, "logger": False, "enable_checkpointing": False,
    "accelerator": "cpu",
}  # fmt: skip


class Noisy(Backbone):
    """Draws from every generator, counts, collects, owns a generator: whatever a trial could leave behind."""

    def __init__(self, lr: float = 0.1, schedule: bool = True) -> None:
        super().__init__(lr=lr, schedule=schedule)
        self.seen: list[float] = []
        self.steps = 0
        self.own = torch.Generator().manual_seed(3)
        self.plain = torch.zeros(1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps += 1
        self.plain += 1
        self.seen.append(random.random() + np.random.rand())
        noise = torch.rand(64, generator=self.own) * 0.01
        return super().training_step([batch[0] + noise, batch[1]], batch_idx)


class Rows(sl.DataModule):
    """Shuffled digits, in batches of `batch_size`, by a generator that it owns."""

    def __init__(self, batch_size: int = 16, count: int = 16 * STEPS) -> None:
        self.batch_size = batch_size
        self.count = count
        self.asked = 0
        self.own = torch.Generator().manual_seed(5)

    def train_dataloader(self) -> DataLoader[Any]:
        self.asked += 1
        return DataLoader(rows(0, self.count), self.batch_size, shuffle=True, generator=self.own)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(rows(1400, 1432), self.batch_size)

    test_dataloader = predict_dataloader = val_dataloader


def trained(*callbacks: Any, data: Any = None, make: Any = Noisy, **options: Any) -> tuple[Any, Any]:
    """A module of two epochs with the callbacks; and the Trainer."""
    sl.seed_everything(0)
    module = make()
    trainer = bare_trainer(max_epochs=2, callbacks=list(callbacks), **options)
    trainer.fit(module, Rows() if data is None else data)
    return module, trainer


def same_outcome(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    """The same weights, attributes, counters, metrics, optimizers, schedulers and generators."""
    (module, trainer), (other_module, other_trainer) = one, other
    assert same_weights(module, other_module)
    assert (module.steps, module.seen) == (other_module.steps, other_module.seen)
    assert torch.equal(module.plain, other_module.plain)
    assert torch.equal(module.own.get_state(), other_module.own.get_state())
    assert torch.equal(trainer.data.own.get_state(), other_trainer.data.own.get_state())
    assert trainer.data.asked == other_trainer.data.asked
    assert trainer.progress == other_trainer.progress
    assert same_tree(trainer.callback_metrics, other_trainer.callback_metrics)
    for kind in ("optimizers", "schedules"):
        states = [
            [getattr(item, "scheduler", item).state_dict() for item in getattr(each, kind)]
            for each in (trainer, other_trainer)
        ]
        assert same_tree(*states)
