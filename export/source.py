"""What is exported: a trained module, how good it was, and what evaluates it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import safetensors.torch
import torch
from torch import nn

from shipline.checkpoint import Checkpoint
from shipline.errors import ConfigError, GateError, IntegrityError
from shipline.export.passes.base import Finetune
from shipline.lineage import Lineage
from shipline.processing import Processing


class Evaluate(Protocol):
    """Runs the module's own validation step over real data and returns what it logs."""

    def __call__(
        self, module: nn.Module, *, split: Literal["val", "train"] = "val", rows: int | None = None
    ) -> dict[str, float]:
        """Evaluate on the validation data, or on (the first `rows` of) the training data."""
        ...


@dataclass(frozen=True)
class Source:
    """What is exported, and how to evaluate it on real data.

    Args:
        build: returns the trained module, in evaluation mode; a new one each time.
        evaluate: runs its validation.
        lineage: where it comes from.
        monitor: the metric that the run was about, where it was about one; and whether "min" or "max" of it is best.
        recorded: the metrics that the run itself measured.
        processing: from raw inputs to the module's rows, and back.
        raw_rows: returns raw inputs of validation rows.
        finetune: trains the module on, for passes that need it.
    """

    build: Callable[[], nn.Module]
    evaluate: Evaluate
    lineage: Lineage = field(default_factory=Lineage)
    monitor: str | None = None
    mode: Literal["min", "max"] | None = None
    recorded: dict[str, float | None] = field(default_factory=dict)
    processing: Processing | None = None
    raw_rows: Callable[[], Iterable[Any]] = tuple
    finetune: Finetune | None = None

    @classmethod
    def of_checkpoint(
        cls, checkpoint: Checkpoint, module_class: Callable[..., nn.Module], evaluate: Evaluate, **others: Any
    ) -> Source:
        """Return a checkpoint, with the class that it is of, as a source; `others` are further arguments."""
        manifest = checkpoint.manifest
        place = {"checkpoint": _place(checkpoint), "checkpoint_digest": manifest.digest}
        return cls(
            build=partial(rebuild, module_class, checkpoint),
            evaluate=evaluate,
            lineage=manifest.lineage.model_copy(update=place),
            monitor=manifest.monitor,
            mode=manifest.mode,
            recorded=dict(manifest.metrics),
            **others,
        )


def rebuild(module_class: Callable[..., nn.Module], checkpoint: Checkpoint) -> nn.Module:
    """Return the module with the checkpoint's weights, in evaluation mode.

    The class comes from the caller; what the checkpoint's text says of it is for people.

    Raises:
        ConfigError: the class cannot be constructed with the arguments in the checkpoint, or was trained with some that
            the checkpoint could not keep.
        IntegrityError: the weights do not fit the class.
        GateError: a weight is NaN or infinite.
    """
    name = getattr(module_class, "__qualname__", str(module_class))
    module = _construct(module_class, name, checkpoint)
    tensors = checkpoint.weights(safetensors.torch.load)
    try:
        module.load_state_dict(tensors)
    except Exception as error:  # whatever a user's own hooks raise
        raise IntegrityError(
            f"The weights of {checkpoint} (a {checkpoint.manifest.module}) do not fit {name}: "
            f"{str(error).strip()[:500]} Give the class that was trained."
        ) from error
    _check_finite(tensors, checkpoint)
    return module.eval()


def _construct(module_class: Callable[..., nn.Module], name: str, checkpoint: Checkpoint) -> nn.Module:
    """Call the class with the arguments in the checkpoint. One that was not kept must not silently become a default."""
    manifest = checkpoint.manifest
    lost = manifest.not_rebuildable
    if lost and isinstance(module_class, type):
        raise ConfigError(
            f"{name} was trained with {', '.join(lost)}, of which a checkpoint, which holds plain data, keeps nothing. "
            f"Give it again: module=functools.partial({name}, {lost[0]}=...)."
        )
    try:
        return module_class(**manifest.hyper_parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot be constructed with the arguments in {checkpoint} ({manifest.hyper_parameters}): {error}. "
            "Give a class, or a function, that takes them."
        ) from error


def _check_finite(tensors: dict[str, torch.Tensor], checkpoint: Checkpoint) -> None:
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise GateError(
                f"{checkpoint} has {bad} NaN or infinite values in {name!r} ({tensor.numel()} in all): the run "
                "diverged. Nothing was published. Export an earlier checkpoint."
            )


def _place(checkpoint: Checkpoint) -> str:
    """Where the checkpoint is: its URL, or on this machine the end of its path, without where this user's files lie."""
    return checkpoint.url if "://" in checkpoint.url else "/".join(checkpoint.url.split("/")[-4:])
