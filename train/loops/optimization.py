"""From a batch to an optimizer step: what a Module may say about it, and the two ways it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.optim import Optimizer

from shipline.errors import ConfigError, TrainingError
from shipline.train.loops.optimizer import LoopOptimizer, unwrapped

if TYPE_CHECKING:
    from shipline.train.strategies import Step
    from shipline.train.trainer import Trainer

ClipAlgorithm = Literal["norm", "value"]
#: Runs a batch, its optimizer step included: of the batch, its index, and whether it is the epoch's last.
RunBatch = Callable[[Any, int, bool], Any]


class OptimizationHooks:
    """How a Module's optimizers step; override to change it. Names and meanings are PyTorch Lightning's."""

    #: Set to False to call `manual_backward` and the optimizers' `step` in `training_step`.
    automatic_optimization: bool = True

    if TYPE_CHECKING:  # of the Module that this is mixed into

        @property
        def trainer(self) -> Trainer: ...

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return the optimizer, or the list of them where `configure_optimizers` returned several.

        Their `step` is counted, scaled and has its hooks; with `use_pl_optimizer=False` they are torch's own.
        """
        trainer = self.trainer
        found: list[Any] = trainer.loop_optimizers if use_pl_optimizer else list(trainer.optimizers)
        return found[0] if len(found) == 1 else found

    def lr_schedulers(self) -> Any:
        """Return the learning rate scheduler, the list of them where there are several, or None."""
        found = [schedule.scheduler for schedule in self.trainer.schedules]
        return found[0] if len(found) == 1 else found or None

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of a loss, with the hooks around it; for manual optimization."""
        if self.automatic_optimization:
            raise TrainingError("manual_backward is for manual optimization: set self.automatic_optimization = False.")
        self.trainer.uncompiled(_backward_by_hand)(self.trainer, loss, *args, **kwargs)

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients of a loss."""
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Optimizer, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step the optimizer. The closure runs training step and backward pass: what overrides this has to call it."""
        optimizer.step(optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear the gradients."""
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm | None = None,
    ) -> None:
        """Clip the gradients before a step, as the Trainer is set to."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: ClipAlgorithm | None = None,
    ) -> None:
        """Limit the norm of the optimizer's gradients together ("norm", the default), or each of their values."""
        if not gradient_clip_val:
            return
        self.trainer.precision_plugin.unscale(unwrapped(optimizer))
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_algorithm == "value":
            self.trainer.strategy.clip_grad_value(parameters, gradient_clip_val)
        else:
            self.trainer.strategy.clip_grad_norm(parameters, gradient_clip_val)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a learning rate scheduler; `metric` is what it monitors, None where it monitors nothing."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def toggle_optimizer(self, optimizer: Optimizer) -> None:
        """Let gradients flow to this optimizer's parameters only, until `untoggle_optimizer`."""
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        others = [p for o in self.trainer.optimizers for group in o.param_groups for p in group["params"]]
        self._toggled = [(p, p.requires_grad) for p in dict.fromkeys(others) if p not in own]
        for parameter, _ in self._toggled:
            parameter.requires_grad = False

    def untoggle_optimizer(self, optimizer: Optimizer) -> None:
        """Undo `toggle_optimizer`."""
        for parameter, required in self._toggled:
            parameter.requires_grad = required
        self._toggled = []

    @contextlib.contextmanager
    def toggled_optimizer(self, optimizer: Optimizer) -> Iterator[None]:
        """Within it, gradients flow to this optimizer's parameters only."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)


def optimization(trainer: Trainer, step: Step) -> RunBatch:
    """Return the function that runs a batch, as the module wants it: automatic or manual."""
    return _automatic(trainer, step) if trainer.module.automatic_optimization else _manual(trainer, step)


def _backward_by_hand(trainer: Trainer, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    hooks = trainer.hooks
    loss = trainer.precision_plugin.scale(loss)
    trainer.strategy.before_manual_backward(trainer.step, loss)
    hooks("on_before_backward", loss)
    hooks.method("backward")(loss, *args, **kwargs)
    hooks("on_after_backward")


def _automatic(trainer: Trainer, step: Step) -> RunBatch:  # noqa: C901 -- the hot path, to be read in one piece
    """Training step and backward pass run inside the optimizer's step, as its closure."""
    hooks, progress = trainer.hooks, trainer.progress
    precision, loss_of = trainer.precision_plugin, trainer.loss_check.loss_of
    raw = trainer.optimizers[0] if trainer.optimizers else None
    before_zero, before_backward = hooks.of("on_before_zero_grad"), hooks.of("on_before_backward")
    after_backward, before_step = hooks.of("on_after_backward"), hooks.of("on_before_optimizer_step")
    clip = trainer.gradient_clip_val is not None or hooks.overridden("configure_gradient_clipping")
    backward, zero_grad = hooks.method("backward"), hooks.method("optimizer_zero_grad")
    optimizer_step, clip_gradients = hooks.method("optimizer_step"), hooks.method("configure_gradient_clipping")

    def look_at_gradients() -> None:
        for hook in before_step:
            hook(raw)
        if clip and raw is not None:
            clip_gradients(raw, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)

    optimizer: Any = raw if raw is None or not precision.scales else LoopOptimizer(raw, trainer, look_at_gradients)

    def run(batch: Any, batch_idx: int, last: bool) -> Any:  # noqa: C901
        outputs: dict[str, Any] = {}
        every = trainer.accumulate_grad_batches
        steps = last or (batch_idx + 1) % every == 0

        def closure() -> torch.Tensor | None:
            nonlocal outputs
            found = step(batch, batch_idx)
            loss = loss_of(found, batch_idx)
            if batch_idx % every == 0 and raw is not None:
                for hook in before_zero:
                    hook(raw)
                zero_grad(progress.current_epoch, batch_idx, raw)
            if loss is not None:
                loss = loss / every if every > 1 else loss
                outputs = _with_loss(found, loss)
                loss = precision.scale(loss)
                for hook in before_backward:
                    hook(loss)
                backward(loss)
                for hook in after_backward:
                    hook()
            elif steps:
                trainer.strategy.average_gradients(
                    trainer.module
                )  # of the batches before; this one's backward would have
            return loss

        def closure_and_look() -> torch.Tensor | None:
            loss = closure()
            look_at_gradients()
            return loss

        if steps:
            if raw is None:
                closure()
            else:
                optimizer_step(
                    progress.current_epoch, batch_idx, optimizer, closure_and_look if optimizer is raw else closure
                )
            progress.global_step += 1
        else:
            with trainer.strategy.no_sync(trainer.step):
                closure()
        return outputs

    return run


def _manual(trainer: Trainer, step: Step) -> RunBatch:
    """The training step does it all; what the optimizers do is only counted."""

    def run(batch: Any, batch_idx: int, _last: bool) -> Any:
        outputs = step(batch, batch_idx)
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        return _with_loss(outputs, loss) if isinstance(loss, torch.Tensor) else outputs or {}

    return run


def _with_loss(outputs: Any, loss: torch.Tensor) -> dict[str, Any]:
    """What hooks see of a training step's outputs: a dict with the loss, which no longer holds the graph."""
    return {**(outputs if isinstance(outputs, dict) else {}), "loss": loss.detach()}


def check_optimization(module: Any, optimizers: list[Optimizer], trainer: Trainer) -> None:
    """Refuse what does not go together.

    Raises:
        ConfigError: several optimizers with automatic optimization; or settings that manual optimization cannot keep.
    """
    name = type(module).__name__
    if module.automatic_optimization:
        if len(optimizers) > 1:
            raise ConfigError(
                f"{name} has {len(optimizers)} optimizers: set self.automatic_optimization = False and step them in "
                "training_step, or return one optimizer with several parameter groups."
            )
        return
    if trainer.accumulate_grad_batches > 1 or trainer.gradient_clip_val is not None:
        raise ConfigError(
            f"{name} steps its optimizers itself, so accumulate_grad_batches and gradient_clip_val mean nothing: leave "
            "them out, and do it in training_step (self.clip_gradients)."
        )
