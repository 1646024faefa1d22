"""The three parts put together. Besides the command line, the only module that knows more than one of them.

`export` never imports `train`: it is handed what evaluates a module, and what trains it on. Here both are the run's own
Trainer.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from shipline.artifact import Artifact, open_model
from shipline.checkpoint import Checkpoint
from shipline.errors import ConfigError, nearest

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from shipline.export import Exportable, Recipe, Source
    from shipline.export.lightning import LightningCheckpoint
    from shipline.processing import Processing
    from shipline.train import DataModule, Module, Run


def export(
    trained: Run | Exportable,
    recipe: Recipe | str | Mapping[str, Any] = "float32",
    *,
    to: str,
    module: Callable[..., Any] | None = None,
    data: Any = None,
    evaluate: Callable[..., dict[str, float]] | None = None,
    finetune: Callable[..., None] | None = None,
    rows: Any = None,
    metric: Callable[..., Any] | Mapping[str, Callable[..., Any]] | None = None,
    mode: Literal["min", "max"] | None = None,
    calibration: Any = None,
    processing: Processing | None = None,
    version: str | None = None,
    executor: Executor | None = None,
) -> Artifact:
    """Publish what was trained as a new version of a model, if it is proved to answer alike.

    It is proved on the rows of a DataModule (`data`, `evaluate`), or, without one, on `rows` (and what follows them).

    Args:
        trained: what `Trainer.fit` returned; a checkpoint or its URL; or a module, wherever it was trained.
        recipe: a Recipe, its settings, or a precision, such as "float32", "int8", or "auto": measure them all.
        to: URL of the model, such as s3://bucket/models/digits.
        module: the class that was trained; default: that of the run. It never comes from the checkpoint's text.
        data: the DataModule with the real rows; default: that of the run.
        evaluate: runs a module's validation and returns its metrics; default: the Trainer's `validate` over `data`.
        finetune: trains a module in place for so many `epochs`, once a recipe has pruned it; default: the Trainer's
            `fit` over `data`, with the module's own optimizers.
        rows: arrays by name of forward's parameters, a tuple of arrays, a Dataset or a DataLoader; or raw inputs, where
            there is processing. See `shipline.export.on_rows` for these and the next four.
        metric: a function of outputs and targets, or several by name; default: how faithful the answers are.
        mode: whether "min" or "max" of the metric is best.
        calibration: rows that scales are measured on; default: `rows`.
        processing: makes rows of raw inputs, and answers of outputs.
        version: a number; default: one more than the newest.
        executor: makes and judges the candidates of "auto" in processes of its own, such as
            `shipline.train.RayExecutor`; what is published is timed and judged here all the same.

    Returns:
        The artifact, whose manifest holds the verdicts.

    Raises:
        GateError: a gate failed; nothing was published, and the message says which row or metric, by how much.
    """
    from shipline.export import export as publish, on_rows, source_of

    found: Any = trained
    if _is_run(trained):
        found, module = trained.checkpoint, module or same_again(trained.module, trained.checkpoint)
        data = trained.data if data is None and rows is None else data
    source = source_of(found, module)
    if rows is not None:
        ways = {"metric": metric, "mode": mode, "calibration": calibration, "processing": processing}
        source = on_rows(source, rows, **ways)
    elif data is not None:
        source = _on_data(source, data, evaluate)
    if finetune is not None:
        source = dataclasses.replace(source, finetune=finetune)
    return publish(source, parse_recipe(recipe), open_model(to), version, executor)


def _is_run(trained: Any) -> TypeGuard[Run]:
    """Whether it is a Run. Where there is one, its module is imported; elsewhere it may not even be installed."""
    runs = sys.modules.get("shipline.train.run")
    return runs is not None and isinstance(trained, runs.Run)


def _on_data(source: Source, data: Any, evaluate: Callable[..., dict[str, float]] | None) -> Source:
    from shipline.train.data.adopt import as_data

    adopted = as_data(None, data)
    return dataclasses.replace(
        source,
        evaluate=evaluate or evaluator(adopted),
        processing=adopted.processing,
        raw_rows=adopted.raw_rows,
        finetune=finetuner(adopted, source.monitor, source.mode),
    )


def parse_recipe(recipe: Recipe | str | Mapping[str, Any]) -> Recipe:
    """Return the Recipe for a precision or a mapping of settings; ConfigError names the nearest known setting."""
    from shipline.export import Recipe

    if isinstance(recipe, Recipe):
        return recipe
    settings = {"precision": recipe} if isinstance(recipe, str) else dict(recipe)
    known = Recipe.__dataclass_fields__
    for name in settings:
        if name not in known:
            raise ConfigError(f"A recipe has no setting {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    return Recipe(**settings)


def evaluator(data: DataModule) -> Callable[..., dict[str, float]]:
    """Return what evaluates a module: the Trainer's validation over this data."""
    from shipline.train import Trainer
    from shipline.train.seed import isolate_rng

    def evaluate(module: Any, *, split: Literal["val", "train"] = "val", rows: int | None = None) -> dict[str, float]:
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        if split == "val":
            return trainer.validate(module, datamodule=data)[0]
        data.prepare_data()
        data.setup("fit")
        loader = data.train_dataloader()
        if rows is not None and getattr(loader, "batch_size", None):
            trainer.limit_val_batches = math.ceil(rows / loader.batch_size)
        with isolate_rng():
            return trainer.validate(module, loader)[0]

    return evaluate


def finetuner(data: DataModule, monitor: str | None = None, mode: str | None = None) -> Callable[..., None]:
    """Return what trains a module on: the Trainer's fit over this data, up to the epoch that is best by a metric."""
    from shipline.train.finetune import finetune

    def train(module: Any, *, epochs: int) -> None:
        finetune(module, data, epochs, monitor, mode)

    return train


def same_again(module: Module, checkpoint: Checkpoint | LightningCheckpoint) -> Callable[..., Any]:
    """Return what constructs the run's module again: its class, with the arguments that no checkpoint can keep."""
    if isinstance(checkpoint, Checkpoint):
        missing = checkpoint.manifest.not_rebuildable
    elif checkpoint.keeps_arguments:
        missing = checkpoint.lost
    else:
        return lambda: copy.deepcopy(module)
    lost = {name: module.hparams[name] for name in missing}
    return functools.partial(type(module), **lost) if lost else type(module)
