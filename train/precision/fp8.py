"""Linear layers that multiply in 8-bit floating point, by torchao."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shipline.errors import ConfigError, MissingExtraError
from shipline.train.precision.mixed import MixedPrecision

_MULTIPLE = 16  # the hardware's: layers of other sizes stay as they are
_CAPABILITY = (8, 9)


class Fp8Precision(MixedPrecision):
    """Linear layers in float8 with dynamic scaling, all else under bfloat16 autocast: "fp8".

    Source: torchao.float8 (https://github.com/pytorch/ao/tree/main/torchao/float8).
    """

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__("bf16-mixed", device)
        self.name = name

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Return the module with its linear layers computing in float8; their weights stay 32-bit.

        Raises:
            ConfigError: the device has no float8 units.
            MissingExtraError: torchao is not installed.
        """
        if self.device.type != "cuda" or torch.cuda.get_device_capability(self.device) < _CAPABILITY:
            raise ConfigError(
                f"precision='fp8' needs a GPU with compute capability 8.9 or above; this is {self._found()}. Choose "
                "'bf16-mixed'."
            )
        return self.convert(module)

    @staticmethod
    def convert(module: nn.Module, **config: Any) -> nn.Module:
        """Replace, in place, the linear layers whose sizes the hardware can do.

        Args:
            module: what is trained.
            config: of torchao's Float8LinearConfig; `emulate=True` computes the same without the hardware.
        """
        try:
            from torchao.float8 import Float8LinearConfig, convert_to_float8_training
        except ModuleNotFoundError as error:
            raise MissingExtraError("precision='fp8' needs torchao. Run: pip install 'shipline[quantize]'") from error

        def fits(layer: nn.Module, _name: str) -> bool:
            return isinstance(layer, nn.Linear) and not (
                layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE
            )

        # Padded, for a batch of any number of rows: in the backward pass they are a size that the hardware must fit.
        settings = Float8LinearConfig(**({"pad_inner_dim": True} | config))
        return convert_to_float8_training(module, module_filter_fn=fits, config=settings)  # type: ignore[no-any-return]

    def wrap_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the step under autocast, and outside of inference mode, in which torchao's tensors do not work."""
        run = super().wrap_step(step)

        def outside(*arguments: Any) -> Any:
            grad = torch.is_grad_enabled()
            with torch.inference_mode(mode=False), torch.set_grad_enabled(grad):
                return run(*arguments)

        return outside

    def release(self, module: nn.Module) -> None:
        """Make plain linear layers of them again, with the same weights."""
        for parent in module.modules():
            for name, layer in parent.named_children():
                if type(layer).__name__ == "Float8Linear":
                    setattr(parent, name, _plain(layer))

    def _found(self) -> str:
        if self.device.type != "cuda":
            return f"the {self.device.type}"
        return f"{torch.cuda.get_device_name(self.device)}, {torch.cuda.get_device_capability(self.device)}"


def _plain(layer: Any) -> nn.Linear:
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain.train(layer.training)
