"""One of several workers that train with callbacks: a process group of PyTorch's, the same loop.

    python callbacks_ddp_worker.py RANK WORLD_SIZE DIRECTORY

Prints as JSON what this worker has after each scenario.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import torch
import torch.distributed as dist
from callback_checks import Backbone
from torch.utils.data import DataLoader
from training import bare_trainer, on_hook, rows, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError
from shipline.train import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelPruning,
    OnlineEvaluator,
    QuantizationAwareTraining,
    StochasticWeightAveraging,
    loops,
)
from shipline.train.data import Loaders
from shipline.train.strategies import pick_strategy


def fingerprint(tree: Any) -> list[float]:
    """The tensors in a tree as numbers that JSON holds exactly."""
    if isinstance(tree, torch.Tensor):
        return [float(tree.double().sum())]
    if isinstance(tree, dict | list | tuple):
        items = tree.values() if isinstance(tree, dict) else tree
        return [number for item in items for number in fingerprint(item)]
    return [float(tree)] if isinstance(tree, int | float) else []


def trained(*callbacks: Callback, rank: int = 0, alone: bool = False, **options: Any) -> Any:
    """A module after three epochs; on each worker other numbers are drawn at random."""
    torch.manual_seed(0)
    module = Backbone(**options)
    torch.manual_seed(rank)
    trainer = bare_trainer(max_epochs=3, callbacks=list(callbacks))
    train = DataLoader(rows(0, 96), 32 if alone else 16)
    loops.fit(trainer, module, Loaders(train, val_loader(32)), None, None if alone else pick_strategy("ddp", 2))
    return module


def finetuned() -> list[Any]:
    """After halves of batches on two workers, and after whole ones on one; without what a batch's size changes."""

    def module(alone: bool) -> list[float]:
        callback = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.1)
        freeze = on_hook("setup", lambda _t, module, _s: module.backbone[1].eval())
        return fingerprint(trained(freeze, callback, alone=alone, dropout=0.0).state_dict())

    return [module(alone=False), module(alone=True)]


def states(rank: int) -> dict[str, Any]:
    """The module's weights and the callback's state, which must be alike on every worker."""
    callbacks: dict[str, Callback] = {
        "ema": EMAWeightAveraging(decay=0.9, use_buffers=False),
        "swa": StochasticWeightAveraging(0.05, swa_epoch_start=1),
        "pruned": ModelPruning("random_unstructured", amount=0.3, resample_parameters=True),
        "rounded": QuantizationAwareTraining(averaging_constant=0.5),
        "probed": OnlineEvaluator(z_dim=10, num_classes=10, hidden_dim=8),
    }
    found = {}
    for name, callback in callbacks.items():
        seen: list[Any] = []
        look = on_hook("on_train_end", lambda *_, c=callback, s=seen: s.append(fingerprint(c.state_dict())))
        module = trained(look, callback, rank=rank)
        weights = {k: v for k, v in module.state_dict().items() if name == "swa" or "backbone.1" not in k}
        found[name] = [fingerprint(weights), seen[0]]
    return found


def probed(rank: int) -> list[Any]:
    """The module without the probe, for comparison."""
    weights = {k: v for k, v in trained(rank=rank).state_dict().items() if "backbone.1" not in k}
    return fingerprint(weights)


def searched(rank: int) -> list[Any]:
    finder = LearningRateFinder(num_training_steps=20, min_lr=1e-3)
    module = trained(finder, rank=rank)
    assert finder.optimal_lr is not None
    return [finder.optimal_lr.results, module.lr, fingerprint(list(module.parameters()))]


def refused() -> str:
    class Data(sl.DataModule):
        batch_size = 2

        def train_dataloader(self) -> Any:
            return train_loader(32, self.batch_size)

    try:
        loops.fit(
            bare_trainer(max_epochs=1, callbacks=BatchSizeFinder()), Backbone(), Data(), None, pick_strategy("ddp", 2)
        )
    except ConfigError as error:
        return str(error)
    return ""


def main(rank: int, world_size: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=world_size)
    try:
        found = {
            "finetuned": finetuned(),
            "states": states(rank),
            "alone": probed(rank),
            "searched": searched(rank),
            "refused": refused(),
        }
        print(json.dumps(found))
    finally:
        gc.collect()  # what still holds the group would otherwise end its threads when nobody can any more
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
