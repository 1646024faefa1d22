"""The steps of a module: which forms they may have, and what becomes of what they return."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from training import (
    Mlp,
    Scripted,
    bare_trainer,
    digits_module,
    numbers,
    on_hook,
    rows,
    same_weights,
    train_loader,
    val_loader,
)

import shipline as sl


class TakesNoIndex(Mlp):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return super().training_step(batch, 0)

    def validation_step(self, batch: Any) -> Any:  # type: ignore[override]
        return super().validation_step(batch, 0)

    def predict_step(self, batch: Any) -> Any:  # type: ignore[override]
        return self(batch[0])


class TakesAnything(Mlp):
    def training_step(self, *arguments: Any) -> Any:
        return super().training_step(*arguments)


class ReturnsADict(Mlp):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "more": batch_idx}


@pytest.mark.parametrize("form", [TakesNoIndex, TakesAnything, ReturnsADict])
def test_a_training_step_may_have_any_of_these_forms(form: type[Mlp]) -> None:
    trained = digits_module()
    bare_trainer(max_epochs=1).fit(trained, train_loader(shuffle=False), val_loader())
    module = form()
    module.load_state_dict(digits_module().state_dict())
    bare_trainer(max_epochs=1).fit(module, train_loader(shuffle=False), val_loader())
    assert same_weights(module, trained)


def test_a_training_step_that_returns_none_skips_its_batch() -> None:
    class Skips(Mlp):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 0 else super().training_step(batch, batch_idx)

    module, optimized = Skips(), []
    module.load_state_dict(digits_module().state_dict())
    steps = on_hook("on_before_optimizer_step", lambda *_: optimized.append(1))
    bare_trainer(max_epochs=1, callbacks=steps).fit(module, train_loader(64, shuffle=False))
    assert len(optimized) == 2  # as in Lightning: the hook is called, and there are no gradients

    other = digits_module()
    bare_trainer(max_epochs=1).fit(other, DataLoader(rows(32, 64), 32))
    assert same_weights(module, other)


def test_what_training_steps_return_reaches_the_hook_after_them() -> None:
    seen: list[Any] = []
    look = on_hook("on_train_batch_end", lambda _t, _m, outputs, _batch, index: seen.append((outputs["more"], index)))
    bare_trainer(max_epochs=1, callbacks=look).fit(ReturnsADict(), train_loader(96))
    assert seen == [(0, 0), (1, 1), (2, 2)]


def test_a_test_step_of_its_own_is_used_for_the_test_only() -> None:
    class Own(Scripted):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("tested", batch[0])

    module = Own([3.0])
    assert bare_trainer().test(module, numbers(3)) == [{"tested": 1.0}]
    assert bare_trainer().validate(module, numbers(3)) == [{"score": 3.0}]


def test_predict_returns_a_list_of_what_each_step_returns() -> None:
    module = TakesNoIndex()
    predictions = bare_trainer().predict(module, val_loader(70))
    assert [p.shape for p in predictions] == [(32, 10), (32, 10), (6, 10)]
    assert not any(p.requires_grad for p in predictions)
    with torch.no_grad():
        assert torch.equal(torch.cat(predictions), torch.cat([module(image) for image, _ in val_loader(70)]))


def test_predict_calls_the_module_where_it_has_no_step() -> None:
    class Doubles(sl.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    assert [p.item() for p in bare_trainer().predict(Doubles(), DataLoader([torch.tensor(1), torch.tensor(2)]))] == [
        2,
        4,
    ]
