"""What is exported: a trained module, how good it was, and what evaluates it."""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import safetensors.torch
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from shipline.backends.base import Arrays
from shipline.checkpoint import Checkpoint
from shipline.errors import ConfigError, GateError, IntegrityError
from shipline.export.passes.base import Finetune
from shipline.lineage import Lineage, describe_code
from shipline.processing import Processing


class Evaluate(Protocol):
    """Runs the module's own validation step over real data and returns what it logs."""

    def __call__(
        self, module: nn.Module, *, split: Literal["val", "train"] = "val", rows: int | None = None
    ) -> dict[str, float]:
        """Evaluate on the validation data, or on (the first `rows` of) the training data."""
        ...


def not_evaluated(module: nn.Module, *, split: Literal["val", "train"] = "val", rows: int | None = None) -> Any:
    """Say that nobody has said on what a module is proved."""
    raise ConfigError("An export is proved on real rows: give data=YourDataModule(), or rows=....")


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
    evaluate: Evaluate = not_evaluated
    lineage: Lineage = field(default_factory=Lineage)
    monitor: str | None = None
    mode: Literal["min", "max"] | None = None
    recorded: dict[str, float | None] = field(default_factory=dict)
    processing: Processing | None = None
    raw_rows: Callable[[], Iterable[Any]] = tuple
    finetune: Finetune | None = None

    def trim(self, rows: Arrays) -> Arrays:
        """Cut rows that are all as long as the longest may be down to the length that the longest of them needs."""
        return rows if self.processing is None else self.processing.trim(rows)

    @classmethod
    def of_checkpoint(
        cls,
        checkpoint: Checkpoint,
        module_class: Callable[..., nn.Module],
        evaluate: Evaluate = not_evaluated,
        **others: Any,
    ) -> Source:
        """Return a checkpoint, with the class that it is of, as a source; `others` are further arguments."""
        manifest = checkpoint.manifest
        place = {"checkpoint": place_of(checkpoint.url), "checkpoint_digest": manifest.digest}
        return cls(
            build=partial(rebuild, module_class, checkpoint),
            evaluate=evaluate,
            lineage=manifest.lineage.model_copy(update=place),
            monitor=manifest.monitor,
            mode=manifest.mode,
            recorded=dict(manifest.metrics),
            **others,
        )

    @classmethod
    def of_module(cls, module: nn.Module, evaluate: Evaluate = not_evaluated, **others: Any) -> Source:
        """Return a module as it is now, wherever it was trained, as a source; the object itself stays as it is.

        Raises:
            ConfigError: it cannot be copied.
            GateError: a weight is NaN or infinite.
        """
        kept = copied(module)
        check_finite(kept, f"The {type(kept).__name__}")
        lineage = Lineage(
            **describe_code(code_of(type(kept))),
            config={"module": f"{type(kept).__module__}.{type(kept).__qualname__}"},
            weights_digest=digest_of(kept.state_dict()),
        )
        return cls(build=partial(_another, kept), evaluate=evaluate, lineage=lineage, **others)


def copied(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU, in evaluation mode, of a module without what torch.compile or DDP put around it."""
    inner = getattr(module, "_orig_mod", module)
    inner = inner.module if isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel) else inner
    try:
        return copy.deepcopy(inner, _computed(inner)).cpu().eval()
    except Exception as error:  # whatever a user's own attributes raise
        raise ConfigError(
            f"The {type(inner).__name__} cannot be copied, and is not to be changed: {type(error).__name__}: {error}. "
            "Build it anew, and load its state_dict."
        ) from error


def _another(module: nn.Module) -> nn.Module:
    """Return another module with the same tensors, which nobody changes: passes that do copy it first."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, tensors)


def _computed(module: nn.Module) -> dict[int, torch.Tensor]:
    """What a copy has in place of tensors with gradients that a forward has left: torch copies none of these.

    Pruning and weight norm of torch.nn.utils leave the weight that they compute, and compute it again in each forward.
    """
    kept = [value for part in module.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}


def digest_of(tensors: Mapping[str, Any]) -> str:
    """Return the sha256 of tensors by name, such as a module's state: of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(tensors).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def code_of(module_class: Any) -> Path | None:
    """Return the directory of the user's code that a class is in; None where it is not known."""
    try:
        directory = Path(inspect.getfile(module_class)).parent
    except (TypeError, OSError):  # typed at a prompt, or no class
        return None
    return None if "site-packages" in directory.parts else directory


def rebuild(module_class: Callable[..., nn.Module], checkpoint: Checkpoint) -> nn.Module:
    """Return the module with the checkpoint's weights, in evaluation mode.

    The class comes from the caller; what the checkpoint's text says of it is for people.

    Raises:
        ConfigError: the class cannot be constructed with the arguments in the checkpoint, or was trained with some that
            the checkpoint could not keep.
        IntegrityError: the weights do not fit the class.
        GateError: a weight is NaN or infinite.
    """
    manifest, name = checkpoint.manifest, getattr(module_class, "__qualname__", str(module_class))
    module = construct(module_class, name, manifest.hyper_parameters, manifest.not_rebuildable, str(checkpoint))
    tensors = checkpoint.weights(safetensors.torch.load)
    load_weights(module, tensors, name, f"{checkpoint} (a {manifest.module})")
    check_finite(module, str(checkpoint))
    return module.eval()


def construct(
    module_class: Callable[..., nn.Module], name: str, arguments: Mapping[str, Any], lost: Sequence[str], where: str
) -> nn.Module:
    """Call the class with the arguments in a checkpoint. One that was not kept must not silently become a default.

    Raises:
        ConfigError: it cannot be done.
    """
    if lost and isinstance(module_class, type):
        raise ConfigError(
            f"{name} was trained with {', '.join(lost)}, of which a checkpoint, which holds plain data, keeps nothing. "
            f"Give it again: module=functools.partial({name}, {lost[0]}=...)."
        )
    kept = {key: value for key, value in arguments.items() if key not in lost}
    try:
        return module_class(**kept)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} cannot be constructed with the arguments in {where} ({kept}): {error}. "
            "Give a class, or a function, that takes them."
        ) from error


def load_weights(module: nn.Module, tensors: Mapping[str, Any], name: str, where: str, *, strict: bool = True) -> None:
    """Load a state dict; IntegrityError where it does not fit."""
    try:
        module.load_state_dict(tensors, strict=strict)
    except Exception as error:  # whatever a user's own hooks raise
        raise IntegrityError(
            f"The weights of {where} do not fit {name}: {str(error).strip()[:500]} Give the class that was trained."
        ) from error


def check_finite(module: nn.Module, where: str) -> None:
    """Raise GateError where a weight is NaN, infinite, missing or sparse, or a buffer NaN: some masks are infinite."""
    weights = dict(module.named_parameters(remove_duplicate=False))
    for name, tensor in _tensors(module.state_dict()).items():
        if is_lazy(tensor):
            raise GateError(
                f"{where} has a lazy layer that has no weights yet: {name!r}. Nothing was published. Call the module "
                "with a batch, and train it."
            )
        if tensor.layout != torch.strided:
            raise GateError(
                f"{where} has {name!r} as a {tensor.layout}, which neither files nor a graph can hold. Nothing was "
                "published. Keep it dense, by `.to_dense()`."
            )
        wrong = _not_finite if name in weights else torch.isnan
        bad = int(wrong(tensor).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise GateError(
                f"{where} has {bad} NaN or infinite values in {name!r} ({tensor.numel()} in all): the run "
                "diverged. Nothing was published. Export an earlier checkpoint."
            )


def _not_finite(tensor: torch.Tensor) -> torch.Tensor:
    return ~torch.isfinite(tensor)


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def place_of(url: str) -> str:
    """Where something is: its URL, or on this machine the end of its path, without where this user's files lie."""
    return url if "://" in url else "/".join(url.split("/")[-4:])
