"""Weights that are set to zero: which, that they stay so, and what is published of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from module_pass_conformance import ModulePassConformance, recorded, seeded
from prunable import Attends, Residual
from small_modules import Digits, Tiny
from torch import nn

import shipline as sl
from shipline import plugins
from shipline.compose import finetuner
from shipline.errors import ConfigError, GateError
from shipline.export.passes.base import Material
from shipline.export.passes.prune_weights import PruneWeights
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.signature import signature_of
from shipline.train import Run


def matrices(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of its linear layers, convolutions and attention, by name."""
    kinds = {"weight": nn.Linear | nn.Conv2d, "in_proj_weight": nn.MultiheadAttention}
    return {
        f"{prefix}.{name}": getattr(part, name).detach()
        for prefix, part in module.named_modules()
        for name, kind in kinds.items()
        if isinstance(part, kind)
    }


def zeros(module: nn.Module) -> float:
    every = torch.cat([weight.flatten() for weight in matrices(module).values()])
    return float((every == 0).float().mean())


class OfWeights(ModulePassConformance):
    @pytest.fixture(params=[Tiny, Residual, Attends])
    def network(self, request: pytest.FixtureRequest) -> type[Tiny]:
        kind: type[Tiny] = request.param
        return kind


class TestUnstructured(OfWeights):
    @pytest.fixture
    def made(self) -> PruneWeights:
        return PruneWeights(amount=0.7, finetune_epochs=0)

    def check_promise(self, before: nn.Module, after: nn.Module) -> None:
        assert zeros(before) == 0
        assert zeros(after) == pytest.approx(0.7, abs=1e-3)
        assert after.state_dict().keys() == before.state_dict().keys()


class TestTwoOfFour(OfWeights):
    @pytest.fixture
    def made(self) -> PruneWeights:
        return PruneWeights(pattern="2:4", finetune_epochs=0)

    def check_promise(self, before: nn.Module, after: nn.Module) -> None:
        found = 0
        for name, weight in matrices(after).items():
            whole = matrices(before)[name]
            if weight.shape[1] % 4:
                assert weight.all(), f"{name} takes {weight.shape[1]} channels"
                continue
            fours = weight.movedim(1, -1).reshape(-1, 4)
            assert (fours.count_nonzero(1) == 2).all(), name
            found += len(fours)
            assert weight.shape == whole.shape
        assert found


def sparse(module: nn.Module, **settings: Any) -> nn.Module:
    rows = recorded(module)
    material = Material(signature_of(module, rows), lambda: rows.inputs, finetuner(Digits()))
    return PruneWeights(**{"finetune_epochs": 0, **settings}).apply(module, material)


def test_it_is_found_by_its_name() -> None:
    assert plugins.load("pass", "prune-weights") is PruneWeights


@pytest.mark.parametrize("network", [Tiny, Residual, Attends])
def test_the_smallest_of_all_layers_go(network: type[Tiny]) -> None:
    module = seeded(network)
    before, after = matrices(module), matrices(sparse(module, amount=0.4))
    kept = [before[name][weight != 0].abs().min() for name, weight in after.items()]
    gone = [before[name][weight == 0].abs().max() for name, weight in after.items() if not weight.all()]
    assert max(gone) <= min(kept)
    for name, weight in after.items():
        assert torch.equal(weight[weight != 0], before[name][weight != 0])


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_of_four_the_two_largest_stay_and_zeros_stay_zero_in_training(pattern: Any) -> None:
    module = seeded(Attends)
    before, after = (matrices(sparse(module, pattern=pattern, finetune_epochs=epochs)) for epochs in (0, 2))
    for name, weight in before.items():
        assert torch.equal(weight == 0, after[name] == 0), name
        assert not torch.equal(weight, after[name]), name
        if pattern == "2:4":
            fours = matrices(module)[name].abs().reshape(-1, 4)
            chosen = weight.reshape(-1, 4) != 0
            assert (fours[chosen].view(-1, 2).min(1).values >= fours[~chosen].view(-1, 2).max(1).values).all()


def test_the_input_of_a_transposed_convolution_is_its_first_dimension() -> None:
    class Widens(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(8, 6, 2)
            self.net = nn.Linear(6 * 9, 9)

        def forward(self, x: torch.Tensor) -> Any:
            return self.net(self.up(x.unflatten(1, (8, 8))).flatten(1))

    after = sparse(seeded(Widens), pattern="2:4")
    fours = after.get_parameter("up.weight").movedim(0, -1).reshape(-1, 4)
    assert (fours.count_nonzero(1) == 2).all()
    assert after.get_parameter("net.weight").all(), "54 is no multiple of four"


def test_without_such_weights_it_is_refused() -> None:
    class Averages(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.BatchNorm1d(64)

    with pytest.raises(GateError, match=r"Averages cannot be pruned, .*: it has no linear layer or convolution"):
        sparse(seeded(Averages))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        *(({"amount": value}, f"amount={value!r}; set a share between 0 and 1") for value in (0, 1, 1.5, True, "half")),
        ({"pattern": "4:8"}, "pattern='4:8'; choose one of unstructured, 2:4"),
        ({"pattern": "2:4", "amount": 0.7}, "pattern='2:4' and amount=0.7; two of four is 0.5"),
        *(({"finetune_epochs": v}, f"finetune_epochs={v!r}; set a whole number from 0") for v in (-1, 1.5, True)),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        PruneWeights(**settings)


def test_sparse_weights_are_published_and_need_not_be_smaller(trained: Run, tmp_path: Path) -> None:
    """A file of float32 holds zeros as it holds any other number; in 8 bits it must be smaller as ever."""
    lax: dict[str, Any] = {"min_speedup": 0.0, "max_metric_drop": 0.05, "tolerance": 0.2}
    made = PruneWeights(amount=0.5, finetune_epochs=2)
    plain = sl.export(trained, sl.Recipe(passes=(made,), **lax), to=str(tmp_path / "plain"))
    small = sl.export(trained, sl.Recipe(passes=(made, StaticInt8()), **lax), to=str(tmp_path / "small"))
    gates = {verdict.gate for verdict in plain.manifest.verdicts}
    assert "size" not in gates
    assert {"parity", "metric", "latency"} <= gates
    assert "size" in {verdict.gate for verdict in small.manifest.verdicts}
    assert "sparse-50% int8 on onnxruntime" in small.read("report.json").decode()
