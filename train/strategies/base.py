"""What every strategy is; and one worker alone, which is its simplest form."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shipline.errors import ConfigError
from shipline.store import absolute, open_store
from shipline.store.commit import discard
from shipline.store.urls import split
from shipline.train.distributed.collectives import operation
from shipline.train.strategies.meta import materialized, names_of

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from shipline.train.module import Module

logger = logging.getLogger(__name__)

Step = Callable[..., Any]


class Strategy:
    """One worker. A strategy of several overrides what they must do together; names are PyTorch Lightning's."""

    #: Whether it is for several workers: of one alone it would only make more work.
    joins_workers = False

    rank = 0
    world_size = 1
    local_rank = 0
    node_rank = 0
    #: Where this worker computes; the Trainer sets it.
    root_device = torch.device("cpu")
    #: Whether each worker holds only its part of the weights: then checkpoints are written in parts, by all of them.
    shards_weights = False
    #: Whether evaluation may run in `torch.inference_mode`.
    infers = True

    @property
    def global_rank(self) -> int:
        """The number of this worker, from 0."""
        return self.rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the first worker."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """The number of this worker's share of the rows: workers that hold parts of one model see the same."""
        return self.rank

    @property
    def data_world_size(self) -> int:
        """Into how many shares rows are divided."""
        return self.world_size

    def place(self, module: Module) -> None:
        """Bring the module to the device, before `setup`; what was made on the meta device gets its values there."""
        materialized(module, self.root_device, names_of(module))
        module.to(self.root_device)

    def setup(self, module: Module) -> Module:
        """Return the module as this strategy trains it, before its optimizers are made."""
        return module

    def setup_optimizers(self, optimizers: list[Optimizer], schedulers: list[Any]) -> list[Optimizer]:
        """Return the optimizers as this strategy steps them, and tell the learning rate schedulers."""
        return optimizers

    def training_step(self, module: Module) -> Step:
        """Return the function that runs a training step so that gradients are those of all workers."""
        return step_of(module, "training_step")

    def no_sync(self, step: Step) -> AbstractContextManager[Any]:
        """Within it gradients are only accumulated: not yet those of all workers."""
        return nullcontext()

    def before_manual_backward(self, step: Step, loss: torch.Tensor) -> None:
        """Called before a backward pass that runs inside the training step."""

    def average_gradients(self, module: Module) -> None:
        """Make gradients that were only accumulated those of all workers, where no backward pass will do it."""

    def clip_grad_norm(self, parameters: list[torch.Tensor], max_norm: float) -> None:
        """Limit the norm of all gradients together."""
        nn.utils.clip_grad_norm_(parameters, max_norm)

    def clip_grad_value(self, parameters: list[torch.Tensor], most: float) -> None:
        """Limit each value of the gradients."""
        nn.utils.clip_grad_value_(parameters, most)

    def in_step(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Return the batches to evaluate; a worker that has fewer than others may have to help them meanwhile."""
        return batches

    def class_of(self, module: Module) -> type:
        """Return the class that the user gave the module."""
        return type(module)

    def weights(self, module: Module) -> dict[str, Any]:
        """Return the module's state dict, whole, on the first worker; all call it."""
        return module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return an optimizer's state, whole, on the first worker; all call it."""
        return optimizer.state_dict()

    def barrier(self, name: str | None = None) -> None:
        """Wait for all workers."""

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's `value`, in order of rank. For small, plain values."""
        return [value]

    def gather_data(self, value: Any) -> list[Any]:
        """Return the `value` of one worker of each share of the rows, in order of the shares."""
        return self.gather(value)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return worker `src`'s `obj`."""
        return self.gather(obj)[src]

    def background(self) -> Callable[[Any], list[Any]]:
        """Return what gathers as `gather` does, in another thread, while this one goes on; all call it."""
        return self.gather

    def all_gather(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> torch.Tensor:
        """Return every worker's tensor, stacked; with one worker, itself."""
        return tensor

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Return the mean, the sum, the product, the least or the greatest over all workers; ConfigError for others."""
        operation(reduce_op)
        return tensor

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:  # noqa: A002 -- Lightning's name
        """Return whether all workers want something, or any."""
        wishes = self.gather(bool(decision))
        return bool(min(wishes) if all else max(wishes))

    def remove_checkpoint(self, filepath: str) -> None:
        """Delete a checkpoint, which the first worker does; one that somebody reads at the time stays."""
        if self.is_global_zero:
            parent, name = split(absolute(filepath))
            store = open_store(parent)
            if not discard(store, name):
                logger.warning("%s is being read, and stays: delete it later.", store.at(name))


def step_of(module: nn.Module, name: str, arguments: int = 2) -> Callable[..., Any]:
    """Return a step as a function of batch, index and, where `arguments` is 3, loader's index.

    The user's own may take only the first of them.
    """
    function = getattr(module, name)
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    if not positional:
        raise ConfigError(f"{type(module).__name__}.{name} takes no batch: define {name}(self, batch, batch_idx).")
    takes = len(positional)
    if takes >= arguments or any(p.kind is p.VAR_POSITIONAL for p in positional):
        return function  # type: ignore[no-any-return]
    return lambda *given: function(*given[:takes])
