"""Gradients that are scaled for 16-bit floats: clipped, skipped and stepped as others are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader
from training import Mlp, bare_trainer, rows, same_weights, train_loader

from shipline.errors import ConfigError
from shipline.train.precision import MixedPrecision

CPU = torch.device("cpu")


class ByHand(Mlp):
    """Clips and steps its optimizer itself."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.1)
        optimizer.step()
        return loss


class Automatic(Mlp):
    """What ByHand does, by the Trainer."""


@pytest.mark.parametrize("name", ["32-true", "16-mixed", "bf16-mixed", "16-true"])
def test_manual_optimization_is_scaled_and_clipped_alike(name: str) -> None:
    """Lightning clips the scaled gradients there, which is next to nothing left of them."""
    modules = []
    for cls, options in ((ByHand, {}), (Automatic, {"gradient_clip_val": 0.1})):
        torch.manual_seed(0)
        modules.append(cls())
        bare_trainer(max_epochs=2, precision=name, **options).fit(modules[-1], train_loader(128, shuffle=False))
    assert same_weights(*modules)


def test_of_two_optimizers_one_that_overflows_leaves_the_other_its_scale() -> None:
    one, other = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizers = [torch.optim.SGD([parameter], lr=1.0) for parameter in (one, other)]
    precision = MixedPrecision("16-mixed", CPU, torch.amp.GradScaler("cpu", init_scale=8.0))
    precision.scale((one + 3 * other).sum()).backward()  # type: ignore[no-untyped-call]
    assert other.grad == torch.tensor([24.0])
    one.grad = torch.full((1,), torch.inf)
    for optimizer in optimizers:
        precision.optimizer_step(optimizer, lambda: None, lambda: None)
    assert (one.item(), other.item()) == (0.0, -3.0)
    assert precision.state_dict()["scale"] == 4.0


def test_a_fused_optimizer_is_scaled_and_clipped_too() -> None:
    """It would unscale its gradients itself, so that Lightning refuses to clip them."""

    class Adam(Mlp):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.fused = fused

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01, fused=self.fused)

    modules = []
    for fused in (True, False):
        torch.manual_seed(0)
        modules.append(Adam(fused))
        trainer = bare_trainer(max_epochs=2, precision="16-mixed", gradient_clip_val=0.1)
        trainer.fit(modules[-1], train_loader(128, shuffle=False))
    for one, another in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-6)


def test_a_batch_without_a_loss_neither_steps_nor_moves_the_scale() -> None:
    class Skips(Mlp):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    module = Skips()
    precision = MixedPrecision("16-mixed", CPU, torch.amp.GradScaler("cpu", growth_interval=3))
    bare_trainer(max_epochs=1, plugins=precision).fit(module, train_loader(128, shuffle=False))
    torch.manual_seed(0)
    other = Mlp()
    kept = ConcatDataset([rows(0, 32), rows(64, 96)])
    bare_trainer(max_epochs=1, precision="16-mixed").fit(other, DataLoader(kept, 32))
    assert same_weights(module, other)
    assert precision.state_dict()["_growth_tracker"] == 2


def test_an_optimizer_that_computes_gradients_often_cannot_be_scaled() -> None:
    class Lbfgs(Mlp):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(ConfigError, match=r"precision='16-mixed' scales gradients once a step, and LBFGS"):
        bare_trainer(max_steps=1, precision="16-mixed").fit(Lbfgs(), train_loader(32))
    bare_trainer(max_steps=1, precision="bf16-mixed").fit(Lbfgs(), train_loader(32))
