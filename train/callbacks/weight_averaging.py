"""Averages of the weights over steps or epochs: validated, kept in checkpoints, and what the module ends with.

Source: torch.optim.swa_utils.AveragedModel (https://docs.pytorch.org/docs/stable/optim.html#weight-averaging).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shipline.errors import ConfigError
from shipline.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

CURRENT = "current_model_state"
AVERAGING = "averaging_state"


class WeightAveraging(Callback):
    """Averages the module's weights; override `should_update` to say when.

    A fit validates the averaged weights, its checkpoints hold them as the module's, and it leaves the module with them.
    What is trained is in the state of the run, so that a resumed one goes on with that.

    Args:
        device: where the average is kept; default: where the module is.
        use_buffers: average the buffers, too; False: they are the module's.
        kwargs: of `torch.optim.swa_utils.AveragedModel`: avg_fn or multi_avg_fn; default: the mean.
    """

    needs_whole_weights = True

    def __init__(self, device: torch.device | str | int | None = None, use_buffers: bool = True, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in ("avg_fn", "multi_avg_fn"):
                raise ConfigError(
                    f"{type(self).__name__} has no option {name!r}. Known: device, use_buffers, avg_fn, multi_avg_fn."
                )
        self._device = torch.device(device) if isinstance(device, str) else device
        self._use_buffers = use_buffers
        self._kwargs = kwargs
        self._begin()

    def _begin(self) -> None:
        self._weights: _Weights | None = None
        self._buffers: list[tuple[nn.Module, str]] = []
        self._average_model: AveragedModel | None = None
        self._swapped = False
        self._latest_update_step = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether to average now; called after every optimizer step and after every epoch.

        Args:
            step_idx: the step's number, from 0; None after an epoch.
            epoch_idx: the epoch's number, from 0; None after a step.
        """
        return step_idx is not None

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return when the average was updated last; the average itself is the checkpoint's weights."""
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up when the average was updated last."""
        self._latest_update_step = state["latest_update_step"]

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Let the checkpoint have the averaged weights as the module's, and those that are trained beside them."""
        if self._average_model is None:
            return
        other = self._in_form_of(checkpoint["state_dict"], module)
        average, current = (checkpoint["state_dict"], other) if self._swapped else (other, checkpoint["state_dict"])
        checkpoint["state_dict"], checkpoint[CURRENT] = average, current
        checkpoint[AVERAGING] = {"n_averaged": self._average_model.n_averaged}

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        """Take up the average, and let the module have the weights that are trained."""
        if CURRENT not in checkpoint:
            logger.warning("The checkpoint was made without %s: the average begins with its weights.", _name(self))
            return
        average = self._make(module)
        for name, tensor in self._in_form_of(checkpoint["state_dict"], module).items():
            tensor.copy_(checkpoint["state_dict"][name])
        average.n_averaged.copy_(checkpoint[AVERAGING]["n_averaged"])
        checkpoint["state_dict"] = checkpoint[CURRENT]

    # ---- the run -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin anew; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self._begin()

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Keep nothing of the module's size."""
        self._weights = self._average_model = None
        self._buffers = []

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Begin with the weights as they are."""
        if self._average_model is None:
            self._make(module)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average, where a step was made and it is time."""
        step = trainer.global_step
        if step > self._latest_update_step and self.should_update(step_idx=step - 1):
            self._update()
            self._latest_update_step = step

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Average, where it is time."""
        if self.should_update(epoch_idx=trainer.current_epoch):
            self._update()

    def on_validation_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Let the module have the average."""
        if trainer.state.fn == "fit":
            self._swap(averaged=True)

    def on_validation_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Let the module have what is trained."""
        if trainer.state.fn == "fit":
            self._swap(averaged=False)

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Let the module have what is trained."""
        self._swap(averaged=False)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Let the module have the average."""
        self._swap(averaged=True)

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        """The same where there was nothing left to train: a run that has ended already was resumed."""
        self._swap(averaged=True)

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _make(self, module: Module) -> AveragedModel:
        self._weights, self._buffers = _Weights(list(module.parameters())), _places_of_buffers(module)
        device: Any = self._device
        self._average_model = AveragedModel(self._now(), device, use_buffers=self._use_buffers, **self._kwargs)
        return self._average_model

    def _now(self) -> _Weights:
        assert self._weights is not None
        self._weights.set_buffers([part._buffers[name] for part, name in self._buffers])  # type: ignore[misc]  # noqa: SLF001
        return self._weights

    def _update(self) -> None:
        assert self._average_model is not None
        self._average_model.update_parameters(self._now())

    def _pairs(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each of the module's tensors, and its counterpart."""
        if self._average_model is not None:
            own, others = self._now(), self._average_model.module
            yield from zip(own.parameters(), others.parameters(), strict=True)
            yield from zip(own.buffers(), others.buffers(), strict=True)

    @torch.no_grad()
    def _swap(self, averaged: bool) -> None:
        if self._swapped == averaged:
            return
        for current, other in self._pairs():
            kept = other.clone()
            other.copy_(current)
            current.copy_(kept)
        self._swapped = averaged

    def _in_form_of(self, state: dict[str, Any], module: Module) -> dict[str, torch.Tensor]:
        """The counterparts of a state dict's tensors, by name; of what has none, the tensor itself."""
        counterparts = {id(current): other for current, other in self._pairs()}
        own = module.state_dict(keep_vars=True)
        return {name: counterparts.get(id(own.get(name)), value).detach() for name, value in state.items()}


class EMAWeightAveraging(WeightAveraging):
    """Averages the weights exponentially: the average moves a little towards them.

    Args:
        device: where the average is kept; default: where the module is.
        use_buffers: average the buffers, too; False: they are the module's.
        decay: the share of the average that stays at each update.
        update_every_n_steps: optimizer steps between two updates; 0: none after steps.
        update_starting_at_step: the first step, from 0, that may be followed by an update.
        update_starting_at_epoch: update at the end of epochs, too, from this one on, counted from 0.
        kwargs: taken for Lightning's sake; there is nothing more to set.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise ConfigError(f"EMAWeightAveraging has decay={decay}; set a share from 0 to 1, such as 0.999.")
        super().__init__(device=device, use_buffers=use_buffers, **kwargs, multi_avg_fn=_Towards(decay))
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the options say so; see WeightAveraging."""
        if step_idx is not None:
            first, every = self.update_starting_at_step, self.update_every_n_steps
            return every > 0 and (first is None or step_idx >= first) and step_idx % every == 0
        first = self.update_starting_at_epoch
        return epoch_idx is not None and first is not None and epoch_idx >= first


@dataclass(frozen=True)
class _Towards:
    """Moves averages towards weights; a class, for a function made by torch could not travel to workers."""

    decay: float

    def __call__(self, averages: Any, weights: Any, count: Any) -> None:
        get_ema_multi_avg_fn(self.decay)(averages, weights, count)  # type: ignore[no-untyped-call]


class _Weights(nn.Module):
    """Parameters and buffers by number: of a module all that is averaged, and nothing else that would be copied."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        for index, parameter in enumerate(parameters):
            self.register_parameter(f"parameter_{index}", parameter)

    def set_buffers(self, buffers: list[torch.Tensor]) -> None:
        for index, buffer in enumerate(buffers):
            self.register_buffer(f"buffer_{index}", buffer)


def _places_of_buffers(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Where the module's buffers are, each once; the tensors there may be replaced by others."""
    found: dict[int, tuple[nn.Module, str]] = {}
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            found.setdefault(id(buffer), (part, name))
    return list(found.values())


def _name(item: object) -> str:
    return type(item).__name__
