"""In which numbers a module computes: as PyTorch Lightning does, and where that is wrong, as it should."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
import torchmetrics
from beside_lightning import lightning_trainer as theirs
from precision_conformance import PrecisionConformance
from pytorch_lightning.plugins import MixedPrecision as LightningMixed
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from training import Mlp, bare_trainer, new_trainer, same_weights, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError
from shipline.train.accelerators.devices import to_device
from shipline.train.precision import MixedPrecision, Precision, TruePrecision

CPU = torch.device("cpu")


class Test32True(PrecisionConformance):
    @pytest.fixture
    def precision(self) -> Precision:
        return Precision("32-true", CPU)


class Test64True(PrecisionConformance):
    weights = computes = torch.float64

    @pytest.fixture
    def precision(self) -> Precision:
        return TruePrecision("64-true", CPU)


class Test16True(PrecisionConformance):
    weights = computes = torch.float16
    tolerance = 0.05

    @pytest.fixture
    def precision(self) -> Precision:
        return TruePrecision("16-true", CPU)


class TestBf16True(PrecisionConformance):
    weights = computes = torch.bfloat16
    tolerance = 0.2

    @pytest.fixture
    def precision(self) -> Precision:
        return TruePrecision("bf16-true", CPU)


class Test16Mixed(PrecisionConformance):
    computes = torch.float16
    tolerance = 0.01

    @pytest.fixture
    def precision(self) -> Precision:
        return MixedPrecision("16-mixed", CPU)


class TestBf16Mixed(PrecisionConformance):
    computes = torch.bfloat16
    tolerance = 0.05

    @pytest.fixture
    def precision(self) -> Precision:
        return MixedPrecision("bf16-mixed", CPU)


# ---- as Lightning ----------------------------------------------------------------------------------------------------


def recording(base: Any) -> Any:
    """A module that keeps its losses and gradients."""

    class Recording(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))
            self.seen: list[Any] = []

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self.layers(batch[0])
            loss = F.cross_entropy(logits, batch[1])
            self.seen.append((logits.dtype, loss.item()))
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self.layers(batch[0])
            self.seen.append((logits.dtype, F.cross_entropy(logits, batch[1]).item()))

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen.append(float(self.layers[0].weight.grad.double().norm()))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    torch.manual_seed(0)
    return Recording()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["64-true", "32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"])
def test_losses_gradients_and_weights_are_those_of_lightning(name: str, quiet_lightning: None) -> None:
    """Bit for bit, with dropout, accumulation and clipping."""
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 0.3}
    expected = recording(lightning.LightningModule)
    # By its name Lightning refuses 16-mixed on the CPU: it takes bf16-mixed, with a warning.
    assert theirs(precision=name).precision == ("bf16-mixed" if name == "16-mixed" else name)
    plugin = {"plugins": LightningMixed("16-mixed", "cpu")} if name == "16-mixed" else {"precision": name}
    theirs(**options, **plugin).fit(expected, train_loader(), val_loader())

    found = recording(sl.Module)
    bare_trainer(precision=name, **options).fit(found, train_loader(), val_loader())
    assert found.seen == expected.seen
    assert same_weights(found, expected)
    assert {p.dtype for p in found.parameters()} == {p.dtype for p in expected.parameters()}


@pytest.mark.filterwarnings("ignore")
def test_steps_on_infinite_gradients_are_left_out_as_in_lightning(quiet_lightning: None) -> None:
    """The scale is halved until they are finite; steps are counted all the same."""

    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=4)

    plugin, own = LightningMixed("16-mixed", "cpu", scaler()), MixedPrecision("16-mixed", CPU, scaler())
    expected, trainer = recording(lightning.LightningModule), theirs(plugins=plugin, max_epochs=2)
    trainer.fit(expected, train_loader())
    found, ours = recording(sl.Module), bare_trainer(plugins=own, max_epochs=2)
    ours.fit(found, train_loader())
    assert same_weights(found, expected)
    assert not same_weights(found, recording(sl.Module))
    assert own.state_dict() == plugin.state_dict()
    assert own.state_dict()["scale"] < 2.0**24
    assert ours.global_step == trainer.global_step == 16


# ---- what is converted -----------------------------------------------------------------------------------------------


def test_layers_made_in_setup_have_the_precision_and_metrics_keep_theirs() -> None:
    class Late(Mlp):
        def setup(self, stage: str) -> None:
            self.late = nn.Linear(64, 64)
            self.phases = nn.Parameter(torch.ones(2, dtype=torch.complex64))
            self.mean = torchmetrics.MeanMetric()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(self.late(image))

    module = Late()
    bare_trainer(max_steps=1, precision="bf16-true").fit(module, train_loader(32))
    assert module.late.weight.dtype == torch.bfloat16
    assert module.phases.dtype == torch.complex64
    assert module.mean.mean_value.dtype == torch.float32


@dataclass(frozen=True)
class Frozen:
    """A batch as a dataclass."""

    x: torch.Tensor
    name: str


def test_batches_of_any_form_are_converted_and_moved() -> None:
    x = torch.ones(2)
    batch = [OrderedDict(x=x), UserDict(x=x), Frozen(x, "n"), pack_sequence([x])]
    converted = TruePrecision("64-true", CPU).convert_input(batch)
    assert [type(item) for item in converted] == [OrderedDict, UserDict, Frozen, PackedSequence]
    found = [converted[0]["x"], converted[1]["x"], converted[2].x, converted[3].data]
    assert {tensor.dtype for tensor in found} == {torch.float64}
    assert batch[1]["x"].dtype == x.dtype == torch.float32  # type: ignore[index]
    moved = to_device(batch, torch.device("meta"))
    assert moved[0]["x"].is_meta
    assert moved[2].x.is_meta
    assert moved[3].data.is_meta
    assert not moved[3].batch_sizes.is_meta  # as PyTorch's packed sequences want it


@pytest.mark.parametrize(
    ("first", "then"), [("16-mixed", "32-true"), ("32-true", "bf16-true"), ("64-true", "16-mixed")]
)
def test_a_run_may_go_on_in_another_precision(first: str, then: str, tmp_path: Path) -> None:
    def fit(name: str, epochs: int, ckpt_path: str | None = None) -> sl.Trainer:
        trainer = new_trainer(tmp_path, max_epochs=epochs, precision=name)
        trainer.fit(Mlp(), train_loader(), ckpt_path=ckpt_path)
        return trainer

    before = float(fit(first, 1).callback_metrics["train_loss"])
    trainer = fit(then, 6, "last")
    assert trainer.global_step == 48
    assert float(trainer.callback_metrics["train_loss"]) < before
    [state] = {value["momentum_buffer"].dtype for value in trainer.optimizers[0].state.values()}
    assert state == next(trainer.module.parameters()).dtype


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (16, "16-mixed"), ("16", "16-mixed"), ("bf16", "bf16-mixed"), (64, "64-true"), (32, "32-true"),
        (None, "32-true"), ("fp8", "fp8"),
    ],
)  # fmt: skip
def test_short_names_are_those_of_lightning(given: Any, name: str) -> None:
    assert sl.Trainer(precision=given).precision == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "b16-mixed"}, r"precision='b16-mixed'\. Did you mean 'bf16-mixed'\? Known: 16-mixed, "),
        ({"precision": 8}, r"precision=8\. Known: 16-mixed, "),
        ({"precision": "transformer-engine"}, "8-bit floating point is precision='fp8' here"),
        ({"plugins": LightningMixed("bf16-mixed", "cpu")}, "plugins has a MixedPrecision, which is neither a shipline"),
        ({"plugins": [Precision("a", CPU), Precision("b", CPU)]}, "a run computes in one precision, so set one"),
        ({"plugins": Precision("a", CPU), "precision": 16}, "a run computes in one precision, so set one"),
    ],
)
def test_precisions_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(**options)


def test_a_precision_made_for_another_device_is_refused() -> None:
    trainer = bare_trainer(max_steps=1, plugins=MixedPrecision("bf16-mixed", torch.device("cuda")))
    with pytest.raises(ConfigError, match=r"'bf16-mixed' was made for cuda, and this run computes on cpu: give it"):
        trainer.fit(Mlp(), train_loader(32))


# ---- on the GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU of NVIDIA's or AMD's")
@pytest.mark.parametrize("name", ["16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true"])
def test_each_precision_trains_on_the_gpu(name: str) -> None:
    run = bare_trainer(max_epochs=8, precision=name, accelerator="gpu").fit(Mlp(), train_loader(1000), val_loader())
    assert run.metrics["val_acc"] > 0.7
