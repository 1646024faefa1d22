"""Training with the rounding that an int8 export will do.

Source: Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference
(https://arxiv.org/abs/1712.05877).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from shipline.errors import ConfigError
from shipline.train.callbacks.callback import Callback

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

_FORWARDS = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
# Of a layer while it is trained: the range of its inputs, and what they are rounded by. No state dict holds them.
_RANGE = ("qat_min", "qat_max")
_ROUNDING = ("qat_scale", "qat_zero_point")
_SEEN = "qat_seen"
# As the int8 recipe of an export has them: weights symmetric, activations over the whole byte.
_WEIGHT_LIMIT = 127
_ACTIVATION_LIMIT = 255
_SMALLEST_SCALE = torch.finfo(torch.float32).eps


class QuantizationAwareTraining(Callback):
    """Rounds weights and inputs of linear and convolution layers to 8 bits while they are trained and validated.

    The scheme is that of `export`'s "int8": weights in int8, a scale for each output channel; inputs in uint8, a scale
    for each layer, from a moving average of their least and greatest values. Gradients pass as if nothing was rounded.
    Checkpoints and the module after the fit have plain float weights.

    Args:
        start_epoch: the first epoch to round in, counted from 0.
        freeze_observers_at_epoch: from this epoch on, ranges stay as they are; None: they follow to the end.
        averaging_constant: the share of a batch in the moving average.
    """

    needs_whole_weights = True

    def __init__(
        self,
        start_epoch: int = 0,
        freeze_observers_at_epoch: int | None = None,
        averaging_constant: float = 0.01,
    ) -> None:
        if start_epoch < 0:
            raise ConfigError(f"QuantizationAwareTraining has start_epoch={start_epoch}; set 0 or more.")
        if freeze_observers_at_epoch is not None and freeze_observers_at_epoch <= start_epoch:
            raise ConfigError(
                f"QuantizationAwareTraining has freeze_observers_at_epoch={freeze_observers_at_epoch}, which is not "
                f"after start_epoch={start_epoch}: no range would ever be seen."
            )
        if not 0 < averaging_constant <= 1:
            raise ConfigError(
                f"QuantizationAwareTraining has averaging_constant={averaging_constant}; set a share above 0, such as "
                "0.01."
            )
        self.start_epoch = start_epoch
        self.freeze_observers_at_epoch = freeze_observers_at_epoch
        self.averaging_constant = averaging_constant
        self._begin()

    def _begin(self) -> None:
        self._layers: dict[str, nn.Module] = {}
        self._loaded: dict[str, Any] = {}
        self._phase = _Phase(self.averaging_constant)

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the range of each layer's inputs."""
        names = (*_RANGE, *_ROUNDING, _SEEN)
        return {
            "observers": {key: {name: getattr(layer, name) for name in names} for key, layer in self._layers.items()}
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the ranges."""
        self._loaded = state["observers"]

    # ---- the run -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin anew; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self._begin()

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Let the layers round.

        Raises:
            ConfigError: there are none.
        """
        for name, layer in module.named_modules():
            if type(layer).forward in _FORWARDS and "forward" not in vars(layer):
                self._layers[name] = layer
                _prepare(layer, self._phase)
        if not self._layers:
            raise ConfigError(
                f"QuantizationAwareTraining rounds linear and convolution layers, and {type(module).__name__} has none."
            )
        for name, observer in self._loaded.items():
            _load(self._layers[name], observer)
        self._set_phase(trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        """Begin to round, or keep the ranges, where it is time."""
        self._set_phase(trainer.current_epoch)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let all workers have the mean of what each has seen."""
        layers = [layer for layer in self._layers.values() if getattr(layer, _SEEN)]
        if trainer.world_size == 1 or not self._phase.observes or not layers:
            return
        own = torch.stack([getattr(layer, name) for layer in layers for name in _RANGE])
        mean = iter(trainer.strategy.reduce(own))
        for layer in layers:
            for name in _RANGE:
                getattr(layer, name).copy_(next(mean))
            _rounded(layer, torch.zeros(1, device=own.device), observes=True, share=0.0)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Leave plain layers, also after an error."""
        for layer in self._layers.values():
            _release(layer)
        self._begin()

    def _set_phase(self, epoch: int) -> None:
        last = math.inf if self.freeze_observers_at_epoch is None else self.freeze_observers_at_epoch
        self._phase.rounds = epoch >= self.start_epoch
        self._phase.observes = self.start_epoch <= epoch < last


@dataclass
class _Phase:
    """What all layers do now."""

    share: float
    rounds: bool = False
    observes: bool = False


def _prepare(layer: nn.Module, phase: _Phase) -> None:
    """Let a layer round. Its forward is covered on the object, so that its parameters keep their names."""
    device = next(layer.parameters()).device
    for name, value in zip(_RANGE, (math.inf, -math.inf), strict=True):
        layer.register_buffer(name, torch.tensor(value, device=device), persistent=False)
    for name, dtype in zip(_ROUNDING, (torch.float32, torch.int32), strict=True):
        layer.register_buffer(name, torch.ones(1, dtype=dtype, device=device), persistent=False)
    setattr(layer, _SEEN, False)
    layer.forward = partial(_forward, layer, phase)


def _load(layer: nn.Module, observer: dict[str, Any]) -> None:
    for name in (*_RANGE, *_ROUNDING):
        getattr(layer, name).copy_(observer[name])
    setattr(layer, _SEEN, observer[_SEEN])


def _release(layer: nn.Module) -> None:
    vars(layer).pop("forward", None)
    for name in (*_RANGE, *_ROUNDING, _SEEN):
        if hasattr(layer, name):
            delattr(layer, name)


def _forward(layer: Any, phase: _Phase, values: torch.Tensor) -> torch.Tensor:
    """A layer's forward pass on rounded inputs and weights."""
    if not phase.rounds:
        plain: torch.Tensor = type(layer).forward(layer, values)
        return plain
    observes = phase.observes and layer.training
    if observes or getattr(layer, _SEEN):
        setattr(layer, _SEEN, True)
        values = _rounded(layer, values, observes, phase.share)
    weight = _rounded_weight(layer.weight)
    if isinstance(layer, nn.Linear):
        return F.linear(values, weight, layer.bias)
    convolved: torch.Tensor = layer._conv_forward(values, weight, layer.bias)  # noqa: SLF001 -- what its forward calls
    return convolved


def _rounded(layer: nn.Module, values: torch.Tensor, observes: bool, share: float) -> torch.Tensor:
    """Return the inputs as uint8 has them, after their range has been seen if the layer `observes`."""
    on, rounds = _flag(int(observes), values.device), _flag(1, values.device)
    low, high, scale, zero = (getattr(layer, name) for name in (*_RANGE, *_ROUNDING))
    found: torch.Tensor = torch.fused_moving_avg_obs_fake_quant(
        values.float(), on, rounds, low, high, scale, zero, share, 0, _ACTIVATION_LIMIT, -1
    )
    return found.to(values.dtype)


def _rounded_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return the weights as int8 has them; dimension 0 is the output channels."""
    largest = weight.detach().float().abs().flatten(1).amax(1)
    scale = (largest / _WEIGHT_LIMIT).clamp_min(_SMALLEST_SCALE)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -_WEIGHT_LIMIT, _WEIGHT_LIMIT)


@cache
def _flag(value: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([value], device=device)
