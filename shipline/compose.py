"""The three parts put together. Besides the command line, the only module that knows more than one of them.

`export` never imports `train`: it is handed what evaluates a module, and what trains it on. Here both are the run's own
Trainer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from shipline.artifact import Artifact, open_model
from shipline.checkpoint import Checkpoint, open_checkpoint
from shipline.errors import ConfigError, nearest

if TYPE_CHECKING:
    from shipline.export import Recipe
    from shipline.train import DataModule, Module, Run


def export(
    checkpoint: str | Checkpoint | Run,
    recipe: Recipe | str | Mapping[str, Any] = "float32",
    *,
    to: str,
    module: Callable[..., Any] | None = None,
    data: DataModule | None = None,
    evaluate: Callable[..., dict[str, float]] | None = None,
    finetune: Callable[..., None] | None = None,
    version: str | None = None,
) -> Artifact:
    """Publish a checkpoint as a new version of a model, if it is proved equal to what was trained.

    Args:
        checkpoint: what `Trainer.fit` returned, or a checkpoint, or its URL.
        recipe: a Recipe, its settings, or a precision, such as "float32", "int8", or "auto": measure them all.
        to: URL of the model, such as s3://bucket/models/digits.
        module: the class that was trained; default: that of the run. It never comes from the checkpoint's text.
        data: the DataModule with the real rows; default: that of the run.
        evaluate: runs a module's validation and returns its metrics; default: the Trainer's `validate` over `data`.
        finetune: trains a module in place for so many `epochs`, once a recipe has pruned it; default: the Trainer's
            `fit` over `data`, with the module's own optimizers.
        version: a number; default: one more than the newest.

    Returns:
        The artifact, whose manifest holds the verdicts.

    Raises:
        GateError: a gate failed; nothing was published, and the message says which row or metric, by how much.
    """
    from shipline.export import Source, export as publish

    found, module, data = _resolve(checkpoint, module, data)
    source = Source.of_checkpoint(
        found,
        module,
        evaluate or evaluator(data),
        processing=data.processing,
        raw_rows=data.raw_rows,
        finetune=finetune or finetuner(data, found.manifest.monitor, found.manifest.mode),
    )
    return publish(source, parse_recipe(recipe), open_model(to), version)


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


def _resolve(
    checkpoint: str | Checkpoint | Run, module: Callable[..., Any] | None, data: DataModule | None
) -> tuple[Checkpoint, Callable[..., Any], DataModule]:
    if isinstance(checkpoint, Checkpoint):
        found = checkpoint
    elif isinstance(checkpoint, str):
        found = open_checkpoint(checkpoint)
    else:
        found = checkpoint.checkpoint
        module = module or same_again(checkpoint.module, found)
        data = data or checkpoint.data
    if module is None:
        raise ConfigError(
            f"Which class is {found} of? It says {found.manifest.module!r}, but text in a checkpoint is not trusted to "
            "choose code. Give module=YourModule."
        )
    if data is None:
        raise ConfigError("An export is proved on real rows: give data=YourDataModule().")
    return found, module, data


def same_again(module: Module, checkpoint: Checkpoint) -> Callable[..., Any]:
    """Return what constructs the run's module again: its class, with the arguments that no checkpoint can keep."""
    lost = {name: module.hparams[name] for name in checkpoint.manifest.not_rebuildable}
    return functools.partial(type(module), **lost) if lost else type(module)
