"""Validation and tests: before, in and without a fit; they change neither the module nor the training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from training import (
    Mlp,
    Recorder,
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

from shipline.errors import ConfigError
from shipline.train.data import Loaders


def test_the_sanity_check_changes_nothing() -> None:
    """It draws random numbers, shuffles and logs; the run after it is the one without it."""

    class Noisy(Mlp):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("noise", torch.rand(()), on_step=True, prog_bar=True)
            super().validation_step(batch, batch_idx)

    def fit(sanity: int) -> tuple[Noisy, list[Any], list[Any]]:
        torch.manual_seed(0)
        module, logged, shown = Noisy(dropout=0.3), Recorder(), []
        look = on_hook("on_train_batch_start", lambda trainer, *_: shown.append(dict(trainer.progress_bar_metrics)))
        trainer = bare_trainer(
            max_epochs=2, logger=logged, num_sanity_val_steps=sanity, callbacks=look, log_every_n_steps=1
        )
        trainer.default_root_dir = "memory://sanity"
        trainer.fit(module, train_loader(), train_loader(64))
        return module, logged.rows, shown

    with_check, without = fit(2), fit(0)
    assert same_weights(with_check[0], without[0])
    assert with_check[1:] == without[1:]


def test_the_sanity_check_finds_a_mistake_in_validation_before_training() -> None:
    class Wrong(Mlp):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("a mistake in validation")

    module = digits_module()
    wrong = Wrong()
    wrong.load_state_dict(module.state_dict())
    with pytest.raises(RuntimeError, match="a mistake in validation"):
        bare_trainer(max_epochs=1).fit(wrong, train_loader(), val_loader())
    assert same_weights(wrong, module)


@pytest.mark.parametrize(("every", "validated"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (9, [])])
def test_it_validates_after_every_nth_epoch(every: int, validated: list[int]) -> None:
    seen: list[int] = []
    look = on_hook("on_validation_start", lambda trainer, _module: seen.append(trainer.current_epoch))
    trainer = bare_trainer(max_epochs=4, check_val_every_n_epoch=every, num_sanity_val_steps=0, callbacks=look)
    trainer.fit(Scripted(), numbers(2), numbers(1))
    assert seen == validated


@pytest.mark.parametrize(("limit", "batches"), [(None, 5), (2, 2), (0, 0), (99, 5)])
@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_limits_of_evaluation(stage: str, limit: int | None, batches: int) -> None:
    class Counts(Scripted):
        seen = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen += 1

    module = Counts()
    trainer = bare_trainer(
        max_epochs=1, num_sanity_val_steps=0, **{f"limit_{'val' if stage != 'test' else 'test'}_batches": limit}
    )
    if stage == "fit":
        trainer.fit(module, numbers(1), numbers(5))
    else:
        getattr(trainer, stage)(module, numbers(5))
    assert module.seen == batches


def test_every_submodule_is_back_in_its_mode_after_validation() -> None:
    """A part that the user keeps in evaluation mode, such as frozen batch norm, stays in it."""

    class Partly(Mlp):
        modes: list[tuple[bool, bool]] = []

        def on_train_start(self) -> None:
            self.layers[2].eval()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.modes.append((self.training, self.layers[2].training))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            assert not any(part.training for part in self.modules())
            assert not torch.is_grad_enabled()

    module = Partly()
    bare_trainer(max_epochs=2, limit_train_batches=1).fit(module, train_loader(), val_loader())
    assert module.modes == [(True, False), (True, False)]
    bare_trainer().validate(module, val_loader())
    assert (module.training, module.layers[2].training) == (True, False)


def test_modes_are_back_when_evaluation_fails() -> None:
    class Fails(Mlp):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            raise RuntimeError("no")

    module = Fails()
    with pytest.raises(RuntimeError, match="no"):
        bare_trainer().validate(module, val_loader())
    assert all(part.training for part in module.modules())


def test_validate_and_test_return_what_the_module_logs() -> None:
    module = digits_module()
    before = digits_module()
    [validated] = bare_trainer().validate(module, val_loader())
    [tested] = bare_trainer().test(module, val_loader())
    image, digit = rows(1400, 1500).tensors
    assert validated == tested
    assert validated["val_acc"] == pytest.approx((module(image).argmax(1) == digit).float().mean().item())
    assert validated["val_loss"] == pytest.approx(F.cross_entropy(module(image), digit).item(), rel=1e-5)
    assert same_weights(module, before)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_stage_without_data(stage: str) -> None:
    with pytest.raises(ConfigError, match=f"There is no data to {stage}"):
        getattr(bare_trainer(), stage)(Scripted(), datamodule=Loaders(train=numbers(1)))
