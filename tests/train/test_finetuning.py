"""Frozen parts that are thawed later."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning.callbacks as theirs
import torch
from callback_checks import Backbone, by_both, check_exact_resume, fit, largest_difference
from lightning_digits import LightningDigits
from torch import nn
from training import Mlp, bare_trainer, train_loader

from shipline.errors import ConfigError
from shipline.train import BackboneFinetuning, BaseFinetuning

# Lightning warns of few data workers, of no logger, and of its own future.
pytestmark = pytest.mark.filterwarnings("ignore")


def growing(_epoch: int) -> float:
    return 1.5


class LayerByLayer(BaseFinetuning):
    """An unfreeze schedule: from the output to the input, a layer in each epoch, each more gently than the last."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(self.layers(pl_module)[1:], train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        layers = self.layers(pl_module)
        if 0 < epoch < len(layers):
            self.unfreeze_and_add_param_group(layers[epoch], optimizer, lr=0.1 * 0.5**epoch)

    def layers(self, module: Any) -> list[nn.Module]:
        found = [layer for layer in self.flatten_modules(module) if list(layer.parameters(recurse=False))]
        return found[::-1]


class TheirLayerByLayer(theirs.BaseFinetuning):
    freeze_before_training = LayerByLayer.freeze_before_training
    finetune_function = LayerByLayer.finetune_function
    layers = LayerByLayer.layers


@pytest.mark.parametrize(
    "options",
    [
        {"unfreeze_backbone_at_epoch": 1},
        {"unfreeze_backbone_at_epoch": 2, "backbone_initial_lr": 0.02, "train_bn": False, "should_align": False},
        {"unfreeze_backbone_at_epoch": 1, "lambda_func": lambda epoch: 1.0 + epoch, "backbone_initial_ratio_lr": 0.5},
        {"unfreeze_backbone_at_epoch": 9},
    ],
    ids=["default", "own rate", "aligned", "never"],
)
def test_backbone_finetuning_ends_with_lightnings_weights(options: dict[str, Any]) -> None:
    ours, others = by_both(
        lambda: LightningDigits(norm=True), BackboneFinetuning(**options), theirs.BackboneFinetuning(**options)
    )
    assert largest_difference(ours, others) < 1e-6


def test_an_unfreeze_schedule_ends_with_lightnings_weights() -> None:
    ours, others = by_both(lambda: LightningDigits(norm=True), LayerByLayer(), TheirLayerByLayer())
    assert largest_difference(ours, others) < 1e-6


@pytest.mark.parametrize("cut_at", [5, 15, 29])
@pytest.mark.parametrize(
    "make",
    [LayerByLayer, lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1, train_bn=False, lambda_func=growing)],
)
def test_finetuning_resumes_exactly(tmp_path: Path, make: Any, cut_at: int) -> None:
    """In the middle of an epoch before, after one, and after several layers were thawed."""
    check_exact_resume(tmp_path, lambda: Backbone(schedule=True), make, cut_at)


def test_an_unfreeze_schedule_trains_a_layer_more_in_each_epoch(tmp_path: Path) -> None:
    changed: list[list[str]] = []

    class Looks(LayerByLayer):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            super().on_train_epoch_start(trainer, module)
            self.before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            parameters = module.named_parameters()
            changed.append([name for name, value in parameters if not torch.equal(value, self.before[name])])

    class Trains(Mlp):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    callback, module = Looks(), Trains()
    trainer = fit(tmp_path, module, callback, epochs=3)
    last, first = ["layers.3.weight", "layers.3.bias"], ["layers.0.weight", "layers.0.bias"]
    assert [set(names) for names in changed] == [set(last), {*last, *first}, {*last, *first}]
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.1, 0.05]
    assert callback.state_dict()["groups"] == [[last, first]]


def test_the_helpers_are_lightnings() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        inner = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(nn.BatchNorm1d(2), nn.ReLU())})
        return nn.ModuleList([nn.Conv1d(1, 1, 1), inner, WithItsOwn()])

    class WithItsOwn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.line = nn.Linear(1, 1)

    found: list[Any] = []
    for base in (BaseFinetuning, theirs.BaseFinetuning):
        net: Any = network()
        helpers: Any = base
        seen = [
            [type(layer).__name__ for layer in helpers.flatten_modules(given)] for given in (net, [net[0], [net[2]]])
        ]
        for train_bn in (True, False):
            helpers.make_trainable(net)
            helpers.freeze(net, train_bn=train_bn)
            seen.append([parameter.requires_grad for parameter in net.parameters()])
            seen.append(net[1]["b"][0].track_running_stats)
            seen += [len(list(helpers.filter_params(net, bn, grad))) for bn in (True, False) for grad in (True, False)]
        optimizer = torch.optim.SGD(net[0].parameters(), lr=0.4)
        helpers.unfreeze_and_add_param_group(net, optimizer, train_bn=False)
        helpers.unfreeze_and_add_param_group(net[1]["b"], optimizer, lr=0.3)
        seen.append([(group["lr"], len(group["params"])) for group in optimizer.param_groups])
        seen.append([parameter.requires_grad for parameter in net.parameters()])
        found.append(seen)
    assert found[0] == found[1]


def test_what_the_optimizer_has_already_is_not_added_again(caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    BaseFinetuning.unfreeze_and_add_param_group(nn.Linear(2, 2), optimizer)  # equal values would be no reason
    BaseFinetuning.unfreeze_and_add_param_group(layer, optimizer)
    assert len(optimizer.param_groups) == 2
    assert "2 of 2 parameters that are thawed are in the optimizer already" in caplog.text


def test_two_fits_begin_alike(tmp_path: Path) -> None:
    callback = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    weights = []
    for name in ("one", "two"):
        torch.manual_seed(0)
        module = Backbone()
        fit(tmp_path / name, module, callback, epochs=3)
        weights.append(module.backbone[0].weight.detach())
    assert torch.equal(*weights)


def test_the_rates_are_logged_where_that_is_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shipline")
    fit(tmp_path, Backbone(), BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=True), epochs=3)
    assert "Epoch 1: learning rate 0.1, the backbone's 0.01." in caplog.text
    assert "Epoch 2: learning rate 0.1, the backbone's 0.02." in caplog.text


class Partly(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.layers[0])


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (BackboneFinetuning(), "freezes the module's backbone, and Mlp has none: call that part self.backbone"),
        (BaseFinetuning(), r"BaseFinetuning has no freeze_before_training\(self, pl_module\)"),
        (Partly(), r"Partly has no finetune_function\(self, pl_module, epoch, optimizer\)"),
    ],
)
def test_what_cannot_be_finetuned(callback: BaseFinetuning, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=1, callbacks=callback).fit(Mlp(), train_loader(32))
