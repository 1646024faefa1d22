"""Weights that are set to zero while the rest is trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning.callbacks as theirs
import torch
from callback_checks import Backbone, PowerCutError, by_both, check_exact_resume, fit, largest_difference
from lightning_digits import LightningDigits
from torch import nn
from torch.nn.utils import prune
from training import Mlp, bare_trainer, new_trainer, on_hook, same_weights, train_loader, val_loader

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError
from shipline.train import ModelPruning

# Lightning warns of few data workers, of no logger, and of its own future.
pytestmark = pytest.mark.filterwarnings("ignore")


def sparsity(module: nn.Module) -> float:
    """The share of zeros among the weights of linear layers."""
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


class LargestFirst(prune.BasePruningMethod):
    """A method of the user's own."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount: Any) -> None:
        self.amount = amount

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        mask = default_mask.clone()
        mask.view(-1)[t.abs().view(-1).topk(int(self.amount * t.numel())).indices] = 0
        return mask


@pytest.mark.parametrize(
    "options",
    [
        {"pruning_fn": "l1_unstructured"},
        {"pruning_fn": "L1_unstructured", "amount": 100, "parameter_names": ["weight"]},
        {"pruning_fn": "random_unstructured", "amount": lambda epoch: 0.1 * epoch},
        {"pruning_fn": "l1_unstructured", "use_global_unstructured": False, "apply_pruning": lambda epoch: epoch == 1},
        {"pruning_fn": "ln_structured", "pruning_dim": 0, "pruning_norm": 2, "parameter_names": ["weight"]},
        {"pruning_fn": "random_structured", "pruning_dim": 1, "amount": 1, "parameter_names": ["weight"]},
        {"pruning_fn": LargestFirst, "prune_on_train_epoch_end": False},
    ],
    ids=lambda options: str(options["pruning_fn"]),
)
def test_pruning_ends_with_lightnings_weights(options: dict[str, Any]) -> None:
    options = {"use_lottery_ticket_hypothesis": False, "amount": 0.3, **options}
    options.setdefault("use_global_unstructured", "_structured" not in str(options["pruning_fn"]))
    ours, others = by_both(LightningDigits, ModelPruning(**options), theirs.ModelPruning(**options))
    assert largest_difference(ours, others) < 1e-6
    assert sparsity(ours) == sparsity(others) > 0.05


@pytest.mark.parametrize("resample", [False, True])
def test_the_winning_ticket_is_lightnings(resample: bool) -> None:
    """Pruned once: at the second time Lightning has lost the weights before training."""
    options: dict[str, Any] = {
        "pruning_fn": "l1_unstructured", "amount": 0.4, "apply_pruning": lambda epoch: epoch == 1,
        "resample_parameters": resample,
    }  # fmt: skip
    ours, others = by_both(LightningDigits, ModelPruning(**options), theirs.ModelPruning(**options))
    assert largest_difference(ours, others) < 1e-6
    assert sparsity(ours) > 0.3


def test_each_winning_ticket_begins_where_training_began() -> None:
    seen: list[torch.Tensor] = []

    def look(_trainer: Any, module: Mlp) -> None:
        layer: Any = module.layers[0]
        seen.append(getattr(layer, "weight_orig", layer.weight).detach().clone())

    looking = [on_hook(hook, look) for hook in ("on_train_start", "on_train_epoch_end")]
    pruning = ModelPruning("l1_unstructured", amount=0.2)
    bare_trainer(max_epochs=3, callbacks=[pruning, *looking]).fit(Mlp(), train_loader(64))
    assert len(seen) == 4
    assert all(torch.equal(weight, seen[0]) for weight in seen)


def every_second(epoch: int) -> bool:
    return epoch % 2 == 1


@pytest.mark.parametrize("cut_at", [5, 14, 37])
@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelPruning("l1_unstructured", amount=0.3, use_lottery_ticket_hypothesis=False),
        lambda: ModelPruning("random_unstructured", amount=0.2, resample_parameters=True, apply_pruning=every_second),
        lambda: ModelPruning(
            "ln_structured", amount=0.2, use_global_unstructured=False, pruning_dim=0, pruning_norm=1,
            parameter_names=["weight"], make_pruning_permanent=False, prune_on_train_epoch_end=False,
        ),
    ],
    ids=["l1", "tickets", "masks stay"],
)  # fmt: skip
def test_pruning_resumes_exactly(tmp_path: Path, make: Any, cut_at: int) -> None:
    check_exact_resume(tmp_path, lambda: Mlp(dropout=0.2), make, cut_at)


def test_checkpoints_hold_plain_pruned_weights_and_the_run_its_masks(tmp_path: Path) -> None:
    pruning, module = ModelPruning("l1_unstructured", amount=0.5, apply_pruning=lambda epoch: epoch == 0), Mlp()
    names = set(module.state_dict())
    states: list[dict[str, Any]] = []
    look = on_hook("on_train_end", lambda *_: states.append(pruning.state_dict()))
    trainer = new_trainer(tmp_path, max_epochs=3, callbacks=[look, pruning])
    run = trainer.fit(module, train_loader(64), val_loader(32))
    [state] = states
    assert set(state["masks"]) == names
    assert {float(value) for mask in state["masks"].values() for value in mask.unique()} == {0.0, 1.0}
    assert set(module.state_dict()) == names
    assert sparsity(module) == pytest.approx(0.5, abs=0.02)
    saved = Mlp.load_from_checkpoint(str(run.last_url))
    assert same_weights(saved, module)
    [found] = bare_trainer().validate(saved, val_loader(32))
    assert found["val_loss"] == pytest.approx(run.metrics["val_loss"], rel=1e-6)
    assert not open_checkpoint(str(run.last_url)).manifest.tied_weights


@pytest.mark.parametrize("stays", [False, True])
def test_the_module_is_plain_after_a_fit_that_failed_unless_masks_are_to_stay(tmp_path: Path, stays: bool) -> None:
    module = Mlp()
    pruning = ModelPruning("l1_unstructured", amount=0.5, make_pruning_permanent=not stays)
    with pytest.raises(PowerCutError):
        fit(tmp_path, module, pruning, cut_at=12)
    assert any(name.endswith("_mask") for name in module.state_dict()) == stays
    assert sparsity(module) == pytest.approx(0.5, abs=0.02)


def test_a_layer_that_is_used_twice_is_pruned_in_both_places(tmp_path: Path) -> None:
    class Twice(Mlp):
        def __init__(self) -> None:
            super().__init__(hidden=64)
            self.other = self.layers[0]

    module = Twice()
    pruning = ModelPruning("l1_unstructured", amount=0.5, apply_pruning=lambda epoch: epoch == 0)
    run = new_trainer(tmp_path, max_epochs=2, callbacks=pruning).fit(module, train_loader(64))
    assert same_weights(Twice.load_from_checkpoint(str(run.last_url)), module)
    again = Twice()
    resuming = ModelPruning("l1_unstructured", amount=0.5, apply_pruning=lambda epoch: epoch == 0)
    new_trainer(tmp_path, max_epochs=2, callbacks=resuming).fit(again, train_loader(64), ckpt_path=run.last_url)
    assert same_weights(again, module)


def test_layers_can_be_chosen(tmp_path: Path) -> None:
    class OnlyFirst(ModelPruning):
        def filter_parameters_to_prune(self, parameters_to_prune: Any = ()) -> Any:
            return parameters_to_prune[:1]

    for make in (
        lambda module: ModelPruning("l1_unstructured", [(module.layers[0], "weight")], amount=0.5),
        lambda _module: OnlyFirst("l1_unstructured", amount=0.5),
    ):
        module = Mlp()
        fit(tmp_path, module, make(module), epochs=1)
        first, last = (int((module.layers[index].weight == 0).sum()) for index in (0, 3))  # type: ignore[operator]
        assert (first, last) == (module.layers[0].weight.numel() // 2, 0)  # type: ignore[operator]


def test_two_fits_in_a_row_prune_the_module_that_they_are_given(tmp_path: Path) -> None:
    pruning, weights = ModelPruning("l1_unstructured", amount=0.5), []
    for name in ("one", "two"):
        torch.manual_seed(0)
        module = Backbone()
        fit(tmp_path / name, module, pruning, epochs=2)
        weights.append(module)
    assert same_weights(*weights)
    assert sparsity(weights[1]) > 0.6


def test_how_much_was_pruned_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "shipline")
    fit(tmp_path, Mlp(), ModelPruning("l1_unstructured", amount=0.5, verbose=2), epochs=2)
    assert "Pruned 1205 of 2410 weights, 50.00 %; before: 0." in caplog.text
    assert "Pruned 1807 of 2410 weights, 74.98 %; before: 1205." in caplog.text
    assert "layers.0.weight by 0.5: " in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_fn": "l1_unstructurd"}, r"has pruning_fn='l1_unstructurd'\. Did you mean 'l1_unstructured'\?"),
        (
            {"pruning_fn": LargestFirst("a")},
            r"choose one of l1_unstructured.* or a class \(not an object\) derived from",
        ),
        (
            {"pruning_fn": LargestFirst, "use_global_unstructured": False},
            "LargestFirst, a class, as pruning_fn: it works",
        ),
        ({"pruning_fn": "ln_structured", "use_global_unstructured": False}, "removes slices: set pruning_dim"),
        (
            {"pruning_fn": "ln_structured", "use_global_unstructured": False, "pruning_dim": 0},
            "set pruning_norm, such as 2",
        ),
        (
            {"pruning_fn": "random_structured", "pruning_dim": 0},
            "use_global_unstructured=True, which ranks single weights",
        ),
        ({"parameter_names": ["gamma"]}, "has parameter_names with 'gamma'; choose of 'weight' and 'bias'"),
        ({"amount": 1.5}, r"has amount=1\.5; set a share as a float up to 1\.0, a number of weights as an int"),
        ({"amount": True}, "has amount=True"),
        ({"amount": "half"}, "has amount='half'"),
        ({"verbose": 3}, "has verbose=3; choose 0, 1 or 2"),
        ({"amounts": 0.5}, r"has no option 'amounts'\. Did you mean 'amount'\?"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelPruning(**{"pruning_fn": "l1_unstructured"} | options)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            [(nn.Linear(2, 2), "weight")],
            "has 'weight' of a Linear, which Mlp does not have: give the layers of the module",
        ),
        (["layers.0.weight"], r"has 'layers\.0\.weight'; give pairs: \(module\.layer, 'weight'\)"),
        ([(1, "weight")], r"has \(1, 'weight'\); give pairs"),
    ],
)
def test_layers_that_are_not_there(places: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bare_trainer(max_epochs=1, callbacks=ModelPruning("l1_unstructured", places)).fit(Mlp(), train_loader(32))


def test_an_amount_that_a_function_returns_is_looked_at_too() -> None:
    pruning = ModelPruning("l1_unstructured", amount=lambda _epoch: -1)
    with pytest.raises(ConfigError, match="has amount=-1"):
        sl.Trainer(max_epochs=1, callbacks=pruning, logger=False, enable_checkpointing=False, accelerator="cpu").fit(
            Mlp(), train_loader(32)
        )
