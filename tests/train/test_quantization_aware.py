"""Training with the rounding of an int8 export."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_checks import PowerCutError, check_exact_resume, fit
from torch import nn
from torch.nn import functional as F
from training import Mlp, bare_trainer, on_hook, same_weights, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError
from shipline.train import EMAWeightAveraging, QuantizationAwareTraining


class Cnn(Mlp):
    """A convolution, batch norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__(hidden=8)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 10))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(self.norm(self.conv(image.view(-1, 1, 8, 8))).relu())
        return found


def rounded(values: torch.Tensor, scale: torch.Tensor, zero: float, least: int, most: int) -> torch.Tensor:
    """What the definition of the scheme says."""
    return (torch.clamp(torch.round(values / scale) + zero, least, most) - zero) * scale


@pytest.mark.parametrize(
    "observed", [torch.linspace(-0.7, 2.0, 8), torch.linspace(0.5, 2.0, 8)], ids=["both", "positive"]
)
def test_a_layer_rounds_as_the_scheme_says(observed: torch.Tensor) -> None:
    """Weights symmetric with a scale for each output, inputs over the byte with zero in it; gradients pass."""
    seen: dict[str, Any] = {}
    layer = nn.Linear(8, 3)

    class One(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(layer)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x = observed.expand(2, 8).clone().requires_grad_()
            out = self.layers(x)
            weight = layer.weight.detach()
            scales = weight.abs().amax(1, keepdim=True) / 127
            low, high = min(float(observed.min()), 0.0), float(observed.max())
            scale = torch.tensor((high - low) / 255)
            zero = round(-low / float(scale))
            expected = F.linear(rounded(x, scale, zero, 0, 255), rounded(weight, scales, 0, -127, 127), layer.bias)
            torch.testing.assert_close(out, expected)
            assert not torch.equal(out, F.linear(x, weight, layer.bias))
            out.sum().backward()  # type: ignore[no-untyped-call]
            assert layer.weight.grad is not None
            assert x.grad is not None
            seen["gradients"] = layer.weight.grad.clone(), x.grad.clone()
            seen["weight"] = rounded(weight, scales, 0, -127, 127)
            return self.layers(x).sum()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    bare_trainer(max_epochs=1, limit_train_batches=1, callbacks=QuantizationAwareTraining()).fit(
        One(), train_loader(32)
    )
    weights, inputs = seen["gradients"]
    torch.testing.assert_close(weights, (2 * rounded(observed, _scale(observed), _zero(observed), 0, 255)).expand(3, 8))
    torch.testing.assert_close(inputs, seen["weight"].sum(0).expand(2, 8))


def _scale(observed: torch.Tensor) -> torch.Tensor:
    return (observed.max() - observed.min().clamp(max=0)) / 255


def _zero(observed: torch.Tensor) -> float:
    return round(float(-observed.min().clamp(max=0) / _scale(observed)))


@pytest.mark.parametrize("cut_at", [5, 12, 29])
@pytest.mark.parametrize("make_module", [lambda: Mlp(dropout=0.2), Cnn])
def test_it_resumes_exactly(tmp_path: Path, make_module: Any, cut_at: int) -> None:
    """Before it rounds, while ranges are seen, and when they are frozen."""
    check_exact_resume(
        tmp_path, make_module, lambda: QuantizationAwareTraining(start_epoch=1, freeze_observers_at_epoch=3), cut_at
    )


def test_ranges_follow_a_moving_average_and_then_stay(tmp_path: Path) -> None:
    states: list[dict[str, Any]] = []
    qat = QuantizationAwareTraining(start_epoch=1, freeze_observers_at_epoch=2, averaging_constant=0.5)
    seen: list[tuple[float, float]] = []

    def look(trainer: sl.Trainer, module: Any, _outputs: Any, batch: Any, _index: int) -> None:
        if trainer.current_epoch == 1:
            seen.append((float(batch[0].min()), float(batch[0].max())))

    def keep(*_: Any) -> None:
        states.append(copy.deepcopy(qat.state_dict()["observers"]["layers.0"]))

    fit(tmp_path, Mlp(), qat, on_hook("on_train_batch_end", look), on_hook("on_train_epoch_end", keep), epochs=3)
    low, high = seen[0]
    for least, most in seen[1:]:
        low, high = low + 0.5 * (least - low), high + 0.5 * (most - high)
    assert [state["qat_seen"] for state in states] == [False, True, True]
    assert float(states[1]["qat_min"]) == pytest.approx(low)
    assert float(states[1]["qat_max"]) == pytest.approx(high)
    assert all(torch.equal(states[1][name], states[2][name]) for name in ("qat_min", "qat_max", "qat_scale"))


def test_validation_rounds_too_and_shows_the_ranges_nothing(tmp_path: Path) -> None:
    """Up to its start epoch, nothing is rounded."""

    class Looks(Mlp):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            plain = copy.deepcopy(self.layers[0])
            plain.__dict__.pop("forward", None)
            inputs = batch[0] * 100
            same.append(torch.equal(self.layers[0](inputs), plain(inputs)))

    same: list[bool] = []
    qat = QuantizationAwareTraining(start_epoch=1)
    highest = []
    look = on_hook(
        "on_validation_end", lambda *_: highest.append(float(qat.state_dict()["observers"]["layers.0"]["qat_max"]))
    )
    bare_trainer(max_epochs=2, callbacks=[qat, look], num_sanity_val_steps=1).fit(
        Looks(), train_loader(64), val_loader(16)
    )
    assert same == [True, True, False]
    assert highest[:2] == [float("-inf")] * 2
    assert highest[2] <= 1.0


def test_the_module_and_its_checkpoints_are_plain(tmp_path: Path) -> None:
    module, names = Cnn(), set(Cnn().state_dict())
    trainer = fit(tmp_path, module, QuantizationAwareTraining(), epochs=2)
    assert set(module.state_dict()) == names
    assert {name for name, _ in module.named_buffers()} == {name for name, _ in Cnn().named_buffers()}
    assert not any("forward" in vars(part) or hasattr(part, "qat_seen") for part in module.modules())
    assert trainer.checkpoint_callback is not None
    saved = Cnn.load_from_checkpoint(trainer.checkpoint_callback.last_model_path)
    assert set(saved.state_dict()) == names
    with pytest.raises(PowerCutError):
        fit(tmp_path / "cut", module, QuantizationAwareTraining(), cut_at=3)
    assert not any("forward" in vars(part) for part in module.modules())


def test_weights_learn_otherwise_than_without_it(tmp_path: Path) -> None:
    """What shows that the tests above compare something."""
    modules = []
    for name, callbacks in {"plain": [], "qat": [QuantizationAwareTraining()]}.items():
        torch.manual_seed(0)
        module = Mlp()
        fit(tmp_path / name, module, *callbacks, epochs=1)
        modules.append(module)
    assert not same_weights(*modules)


def test_it_goes_with_mixed_precision_and_averages(tmp_path: Path) -> None:
    module = Mlp()
    ema = EMAWeightAveraging(decay=0.5)
    trainer = fit(tmp_path, module, QuantizationAwareTraining(), ema, epochs=2, precision="bf16-mixed")
    assert float(trainer.callback_metrics["val_acc"]) > 0.3
    assert all(parameter.dtype is torch.float32 for parameter in module.parameters())


class Convolved(nn.Conv2d):
    """A layer with a forward of its own is left alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 -- torch's name
        return super().forward(input)


class NoLayers(Mlp):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Convolved(1, 1, 1), nn.Flatten())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_epoch": -1}, "has start_epoch=-1; set 0 or more"),
        (
            {"start_epoch": 2, "freeze_observers_at_epoch": 2},
            "freeze_observers_at_epoch=2, which is not after start_epoch=2",
        ),
        ({"averaging_constant": 0.0}, r"has averaging_constant=0\.0; set a share above 0"),
        ({}, "rounds linear and convolution layers, and NoLayers has none"),
    ],
)
def test_what_cannot_be_rounded(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=1, callbacks=QuantizationAwareTraining(**options)).fit(NoLayers(), train_loader(32))
