"""Validation, test and prediction: one pass over each loader of a stage."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipline.errors import ConfigError
from shipline.train.data.combined import any_feed
from shipline.train.data.feed import Feed
from shipline.train.data.limits import Limit, count_batches, least, several
from shipline.train.data.ray_rows import RayRows, own_rows
from shipline.train.data.sharding import is_sharded
from shipline.train.hooks import is_foreign, overrides
from shipline.train.loops.logging import collecting, log_values, reduced
from shipline.train.stage import prepared
from shipline.train.strategies import Strategy, step_of

if TYPE_CHECKING:
    from shipline.train.data import DataModule
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

Name = Literal["validation", "test", "predict"]
_STAGES = {"validation": "validate", "test": "test", "predict": "predict"}


@dataclass
class Source:
    """One of a stage's loaders: this worker's share of its batches."""

    feed: Feed
    batches: int | None  # of all workers together
    every: int
    first: int

    def own_batches(self, most: int | None = None) -> int | None:
        """Return how many batches are this worker's, where not more than `most` are taken of all."""
        total = least(self.batches, most)
        return None if total is None else len(range(self.first, total, self.every))


def sources(trainer: Trainer, loaders: Any, limit: Limit) -> list[Source]:
    """Return the loaders, each worker's batches being every `world_size`-th one.

    So every batch is the one that a single worker would see, none is padded, and metrics are those of one worker.
    """
    found = []
    for loader in several(loaders):
        split = trainer.use_distributed_sampler and not is_sharded(loader)
        every, first = (trainer.strategy.data_world_size, trainer.strategy.data_rank) if split else (1, 0)
        count = count_batches(any_feed(loader), limit)
        if every > 1 and isinstance(rows := own_rows(loader), RayRows) and every == trainer.strategy.world_size:
            own = any_feed(rows.sharded(trainer.strategy, equal=False))  # gives this worker's batches alone
        else:
            own = any_feed(loader, every, first)
        found.append(Source(own, count, every, first))
    return found


def evaluate(
    trainer: Trainer, module: Module, data: DataModule, stage: Literal["validate", "test"], strategy: Strategy | None
) -> list[dict[str, float]]:
    """Return the metrics that the module's own step logs over the stage's data, for each of its loaders."""
    with prepared(trainer, module, data, stage, strategy):
        limit = trainer.limit_val_batches if stage == "validate" else trainer.limit_test_batches
        if limit == 0:
            return []
        loaders = trainer.hooks.data("val_dataloader" if stage == "validate" else "test_dataloader")
        trainer.sources = sources(trainer, loaders, limit)
        if not trainer.sources:
            raise ConfigError(f"There is no data to {stage}: give a loader, or a DataModule that has one.")
        trainer.forget_metrics()
        return run(trainer, "validation" if stage == "validate" else "test", trainer.inference_mode)


def predict(
    trainer: Trainer, module: Module, data: DataModule, strategy: Strategy | None, keep: bool = True
) -> list[list[Any]]:
    """Return what `predict_step` returns for each batch of each loader, unless it is not to be kept."""
    with prepared(trainer, module, data, "predict", strategy):
        trainer.sources = sources(trainer, trainer.hooks.data("predict_dataloader"), trainer.limit_predict_batches)
        if not trainer.sources:
            raise ConfigError("There is no data to predict: give a loader, or a DataModule that has one.")
        with _evaluating(trainer, "predict", trainer.inference_mode):
            trainer.hooks("on_predict_start")
            trainer.hooks("on_predict_epoch_start")
            trainer.predictions = [[] for _ in trainer.sources] if keep else None
            with trainer.metrics.stage(None):
                run_steps(trainer, "predict")
            trainer.hooks("on_predict_epoch_end")
            trainer.hooks("on_predict_end")
        return trainer.predictions or []


def run(trainer: Trainer, name: Name, inference_mode: bool, most: int | None = None) -> list[dict[str, float]]:
    """Run a stage's steps and hooks over its loaders; return what they logged for each, reduced over all workers."""
    stage: Literal["validate", "test"] = "validate" if name == "validation" else "test"
    if not trainer.sources or not _has_step(trainer, name):
        return [{} for _ in trainer.sources]
    with _evaluating(trainer, name, inference_mode):
        with collecting(trainer, stage):
            trainer.hooks(f"on_{name}_start")
            trainer.hooks(f"on_{name}_epoch_start")
            run_steps(trainer, name, most)
            results = reduced(trainer, reset=False)
        with collecting(trainer, stage):
            trainer.hooks(f"on_{name}_epoch_end")
            more = reduced(trainer)
        results.reset()
        log_values(trainer, results.logged | more.logged)
        trainer.end_validation()
        with trainer.metrics.stage(None):
            trainer.hooks(f"on_{name}_end")
            for hook in trainer.hooks.late(f"on_{name}_end"):
                hook()
    count = len(trainer.sources)
    return [results.of_loader(_suffix(count, index)) | more.all for index in range(count)]


def _has_step(trainer: Trainer, name: Name) -> bool:
    """Whether the module says what to do; where it has no test of its own, ours does what validation does."""
    module = trainer.module
    return overrides(module, f"{name}_step") or (
        name == "test" and not is_foreign(module, "LightningModule") and overrides(module, "validation_step")
    )


def run_steps(trainer: Trainer, name: Name, most: int | None = None) -> None:
    """Run the step `name` over each loader."""
    hooks, metrics, count = trainer.hooks, trainer.metrics, len(trainer.sources)
    step = trainer.compiled(step_of(trainer.module, f"{name}_step", 2 if count == 1 else 3))
    step = trainer.precision_plugin.wrap_step(step)
    step = hooks.profiled(f"[Module]{type(trainer.module).__name__}.{name}_step", step)
    before, after = hooks.of(f"on_{name}_batch_start"), hooks.of(f"on_{name}_batch_end")
    transfer, mark = hooks.transfer(trainer.data), trainer.clock.mark
    for index, source in enumerate(trainer.sources):
        where = () if count == 1 else (index,)
        metrics.suffix = _suffix(count, index)
        batches = source.feed.batches(source.own_batches(most))
        batches = trainer.strategy.in_step(batches)
        batches = trainer.profiler.profile_iterable(batches, f"{name}_dataloader_next")
        for number, (batch, _last) in enumerate(batches):
            batch_idx = source.first + number * source.every
            mark(f"{name} batch", batch_idx)
            if transfer is not None:
                batch = transfer(batch, index)  # noqa: PLW2901
            metrics.begin_batch(batch)
            for hook in before:
                hook(batch, batch_idx, *where)
            outputs = step(batch, batch_idx, *where)
            for hook in after:
                hook(outputs, batch, batch_idx, *where)
            if name == "predict":
                trainer.add_prediction(index, batch_idx, outputs)
            elif metrics.step_logged:
                _log_step(trainer)
            trainer.check_signals()
        source.feed.end_epoch()
    mark(f"end of {name}")
    metrics.suffix = ""
    metrics.end_batch()


def _log_step(trainer: Trainer) -> None:
    """What evaluation logs per step goes by an axis of its own: the number of the batch."""
    values = {key: float(value) for key, value in trainer.metrics.step_logged.items()}
    trainer.metrics.step_logged.clear()
    if not trainer.sanity_checking:
        log_values(trainer, values, trainer.progress.validation_batches)
        trainer.progress.validation_batches += 1


def _suffix(count: int, index: int) -> str:
    """What Lightning ends the names of metrics in, where there are several loaders."""
    return "" if count == 1 else f"/dataloader_idx_{index}"


@contextlib.contextmanager
def _evaluating(trainer: Trainer, name: Name, inference_mode: bool) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every submodule is in the mode it was in before."""
    modes = [(part, part.training) for part in trainer.module.modules()]
    if not trainer.hooks(f"on_{name}_model_eval"):
        trainer.module.eval()
    before, trainer.evaluation = trainer.evaluation, name
    stage, trainer.state.stage = trainer.state.stage, "sanity_check" if trainer.sanity_checking else _STAGES[name]
    try:
        with torch.inference_mode() if inference_mode and trainer.strategy.infers else torch.no_grad():
            yield
    finally:
        trainer.evaluation, trainer.state.stage = before, stage
        for part, training in modes:
            part.training = training
    if name != "predict":
        trainer.hooks(f"on_{name}_model_train")
