"""A training step on a pipeline: the module's own, run for each microbatch where the last stage is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

from shipline.errors import ConfigError
from shipline.train.strategies.logged import Logged

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.strategies.base import Step
    from shipline.train.strategies.pipeline import Pipeline


class MicrobatchedStep:
    """Computes loss and gradients of a batch; the gradients are given to the weights in the backward pass of the loss.

    So hooks, accumulation, clipping and skipped batches are those of any other step.
    """

    def __init__(self, module: Module, step: Step, strategy: Pipeline) -> None:
        self._module, self._step, self._strategy = module, step, strategy
        self._parameters = list(strategy.parameters())
        self._schedules: dict[int, Any] = {}

    def __call__(self, batch: Any, batch_idx: int) -> torch.Tensor:
        before = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        outside = self._module.forward
        logged = Logged(self._module)
        try:
            loss = self._run(batch, batch_idx, logged)
        finally:
            self._module.forward = outside
            fresh = [parameter.grad for parameter in self._parameters]
            for parameter, gradient in zip(self._parameters, before, strict=True):
                parameter.grad = gradient
        value, words = self._strategy.from_last((loss, logged.words()))
        logged.say(words)
        value = value.to(self._strategy.root_device)
        return _Later.apply(value.clone().requires_grad_(), self._parameters, fresh)  # type: ignore[no-any-return, no-untyped-call]

    def _run(self, batch: Any, batch_idx: int, logged: Logged) -> torch.Tensor | None:
        """The mean loss over the microbatches, where the last stage is."""
        rows = _rows(batch)
        inputs: tuple[Any, ...] = ()
        with logged.collected():
            if self._strategy.is_first:
                inputs = self._inputs(batch, batch_idx)
                logged.clear()
            self._batch, self._batch_idx = batch, batch_idx
            losses: list[torch.Tensor] = []
            schedule = self._schedule = self._schedules.get(rows) or self._strategy.schedule(rows, self._loss)
            self._schedules[rows] = schedule
            target = torch.arange(rows) if self._strategy.is_last else None
            schedule.step(*inputs, target=target, losses=losses, return_outputs=False)
        return torch.stack(losses).mean().detach().cpu() if losses else None

    def _inputs(self, batch: Any, batch_idx: int) -> tuple[Any, ...]:
        """What the training step calls the module with."""

        def forward(*given: Any, **options: Any) -> Any:
            if options:
                raise ConfigError(
                    f"{type(self._module).__name__}.training_step calls the module with {', '.join(options)} by name, "
                    "which a pipeline does not pass on: give them in order."
                )
            raise _CalledError(given)

        self._module.forward = forward
        try:
            self._step(batch, batch_idx)
        except _CalledError as called:
            return called.given
        raise ConfigError(
            f"{type(self._module).__name__}.training_step does not call self(...), whose layers a pipeline would run: "
            "let it compute its loss from self(inputs)."
        )

    def _loss(self, output: Any, rows: torch.Tensor) -> torch.Tensor:
        if _is_trial(self._schedule):
            return torch.stack([item.sum() for item in tree_flatten(output)[0]]).sum()
        self._module.forward = lambda *_given, **_options: output
        whole, first, last = _rows(self._batch), int(rows[0]), int(rows[-1])

        def own(item: Any) -> Any:
            divides = isinstance(item, torch.Tensor) and item.dim() and len(item) == whole
            return item[first : last + 1] if divides else item

        found = self._step(tree_map(own, self._batch), self._batch_idx)
        loss = found["loss"] if isinstance(found, dict) else found
        if not isinstance(loss, torch.Tensor):
            raise ConfigError(
                f"{type(self._module).__name__}.training_step returned no loss, and a pipeline cannot leave out a "
                "part of a batch: return a tensor, or a dict with 'loss'."
            )
        return loss


def _is_trial(schedule: Any) -> bool:
    """Whether PyTorch is only finding out the shapes of gradients, with an output that holds nothing."""
    known = ("_stage_backward_initialized", "_stages_backward_initialized")
    return not any(getattr(schedule, name, False) for name in known)


class _CalledError(Exception):
    """Carries what the module was called with out of its training step."""

    def __init__(self, given: tuple[Any, ...]) -> None:
        super().__init__()
        self.given = given


class _Later(torch.autograd.Function):
    """Gives gradients that are there already to their weights, when and by how much the loss's own gradient says."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, parameters: list[nn.Parameter], gradients: list[Any]) -> torch.Tensor:
        ctx.pairs = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[None, None, None]:
        for parameter, gradient in ctx.pairs:
            gradient.mul_(factor)
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        ctx.pairs = []
        return None, None, None


def _rows(batch: Any) -> int:
    leaves = [leaf for leaf in tree_flatten(batch)[0] if isinstance(leaf, torch.Tensor) and leaf.dim()]
    if not leaves:
        raise ConfigError("A pipeline divides batches by rows, and this one has no tensor: give batches of tensors.")
    return len(leaves[0])
