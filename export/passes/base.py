"""What every pass is."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import nn

from shipline.backends.base import Arrays
from shipline.errors import ConfigError, GateError
from shipline.signature import Signature


class Finetune(Protocol):
    """Trains a module in place, as the run did: its data, its optimisers."""

    def __call__(self, module: nn.Module, *, epochs: int) -> None:
        """Train for so many passes over the training data."""
        ...


@dataclass(frozen=True)
class Material:
    """What a pass may look at besides what it changes.

    Args:
        signature: before and after.
        calibration: returns training rows, by input name.
        finetune: trains a module on; None where nobody said how.
        notes: what passes have found out, for the report.
    """

    signature: Signature
    calibration: Callable[[], Arrays]
    finetune: Finetune | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Pass:
    """One step on the way to what is served. Its settings are its constructor's arguments."""

    #: Whether the file becomes smaller by it alone, and must be.
    shrinks: ClassVar[bool] = True
    #: What outputs may then differ by, in parts of their largest value.
    tolerance: ClassVar[float] = 0.0
    #: Whether it looks at calibration rows.
    measures: ClassVar[bool] = False


class ModulePass(Pass, ABC):
    """One step from a module to another of the same signature, with weights or layers of its own.

    One that follows the user's code may hang or crash in it, so each is applied in a process of its own first, without
    fine-tuning, and then here.

    What follows is proved equal to that one; the metric alone is compared with the trained module's.
    """

    #: What it computes in, where that is not float32; `tolerance` is then what a graph may differ by from the module.
    precision: ClassVar[str] = ""

    @property
    @abstractmethod
    def label(self) -> str:
        """What a module is called that went through it, such as "pruned-50%"."""

    @abstractmethod
    def apply(self, module: nn.Module, material: Material) -> nn.Module:
        """Return the new module in evaluation mode; the one that was given stays as it is.

        Raises:
            GateError: the module cannot go through; says why.
        """


class GraphPass(Pass, ABC):
    """One step from an ONNX graph to another of the same signature."""

    #: What a graph is called that went through it.
    precision: ClassVar[str]

    @abstractmethod
    def apply(self, model: bytes, material: Material) -> bytes:
        """Return the new graph; the same one for the same graph and rows.

        Raises:
            GateError: the graph cannot go through; says why.
        """


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let libraries print nothing, and set nothing up for those who log, in the block."""
    root, own = logging.getLogger(), logging.NullHandler()
    handlers, level = root.handlers, root.level
    root.handlers = [own]  # with none, `logging.info` would make one that stays
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.handlers = handlers
        root.setLevel(level)


def refused(what: str, error: Exception) -> GateError:
    """Return the error for a graph on which a library gave up."""
    text = str(error).strip()[:800]
    return GateError(f"The graph cannot be made {what}, so nothing was published: {type(error).__name__}: {text}")


def unprunable(module: nn.Module, error: Exception) -> GateError:
    """Return the error for a module that cannot be pruned."""
    text = str(error).strip()[:800]
    text = text if isinstance(error, GateError) else f"{type(error).__name__}: {text}"
    return GateError(f"{type(module).__name__} cannot be pruned, so nothing was published: {text}")


def finetuning(material: Material, epochs: int, who: str) -> Callable[[nn.Module], None]:
    """Return what trains a module on for so many epochs, in place.

    Raises:
        ConfigError: it is to be trained, and nobody said how.
    """
    train = material.finetune
    if epochs and train is None:
        raise ConfigError(
            f"{who} has finetune_epochs={epochs}, and nobody said how to train: give sl.export(finetune=...), or set "
            "finetune_epochs=0."
        )
    return lambda module: train(module, epochs=epochs) if epochs and train is not None else None
