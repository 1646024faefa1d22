"""8-bit floating point: which layers take it, what it needs, and that it trains."""

from __future__ import annotations

import sys

import pytest
import torch
from precision_conformance import PrecisionConformance
from torch import nn
from torch.nn import functional as F
from training import Mlp, bare_trainer, rows, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError, MissingExtraError
from shipline.train.precision import Precision
from shipline.train.precision.fp8 import Fp8Precision

CPU = torch.device("cpu")


class Emulated(Fp8Precision):
    """What a GPU would compute in float8."""

    def convert_module(self, module: nn.Module) -> nn.Module:
        return self.convert(module, emulate=True)


class TestFp8(PrecisionConformance):
    computes = torch.bfloat16
    tolerance = 0.2

    @pytest.fixture
    def precision(self) -> Precision:
        return Emulated("fp8", CPU)

    def test_is_found_by_its_name(self, precision: Precision) -> None:
        assert sl.Trainer(precision="fp8").precision == "fp8"


def test_fp8_takes_the_layers_whose_sizes_the_hardware_can_do() -> None:
    module = Mlp(hidden=48)
    plain = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    Fp8Precision.convert(module, emulate=True)
    assert [type(layer).__name__ for layer in module.layers] == ["Float8Linear", "ReLU", "Dropout", "Linear"]
    image, digit = rows(0, 27).tensors  # rows that are no multiple of 16, either
    want = F.cross_entropy(Mlp.forward(module, image), digit)
    want.backward()  # type: ignore[no-untyped-call]
    assert module.layers[0].weight.grad is not None
    Fp8Precision("fp8", CPU).release(module.eval())
    assert [type(layer).__name__ for layer in module.layers] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert not any(layer.training for layer in module.layers)
    assert all(torch.equal(plain[name], tensor) for name, tensor in module.state_dict().items())
    assert F.cross_entropy(module(image), digit).item() == pytest.approx(want.item(), rel=0.05)


def test_fp8_needs_the_hardware_and_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    if not _has_float8():
        with pytest.raises(ConfigError, match=r"needs a GPU with compute capability 8\.9 or above; this is "):
            sl.Trainer(precision="fp8", max_steps=1, logger=False, enable_checkpointing=False).fit(
                Mlp(), train_loader(32)
            )
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(MissingExtraError, match=r"needs torchao\. Run: pip install 'shipline\[quantize\]'"):
        Fp8Precision.convert(Mlp())


def _has_float8() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


@pytest.mark.skipif(not _has_float8(), reason="float8 needs a GPU with compute capability 8.9 or above")
def test_fp8_trains_on_the_gpu() -> None:
    module = Mlp()
    trainer = bare_trainer(max_epochs=8, precision="fp8", accelerator="gpu")
    run = trainer.fit(module, train_loader(1000), val_loader())
    assert run.metrics["val_acc"] > 0.7
    assert type(module.layers[0]) is nn.Linear
