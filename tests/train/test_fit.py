"""The loop: what it computes, when it stops, what it calls and when."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from training import (
    Mlp,
    Recorder,
    Scripted,
    bare_trainer,
    new_trainer,
    numbers,
    on_hook,
    rows,
    same_weights,
    train_loader,
    val_loader,
)

import shipline as sl
from shipline.errors import ConfigError, TrainingError
from shipline.train import Callback, DataModule
from shipline.train.accelerators import pick_device
from shipline.train.accelerators.devices import to_device
from shipline.train.data import Loaders


def digits_module(seed: int = 0, **options: Any) -> Mlp:
    torch.manual_seed(seed)
    return Mlp(**options)


# ---- what it computes ------------------------------------------------------------------------------------------------


def test_it_learns() -> None:
    module = digits_module()
    run = bare_trainer(max_epochs=8).fit(module, train_loader(1400), val_loader(397))
    assert run.metrics["val_acc"] > 0.85
    assert run.metrics["val_loss"] < 0.6
    assert run.module is module


def test_it_computes_what_a_plain_loop_computes_bit_for_bit() -> None:
    """Shuffling and dropout included; the loop draws nothing from the generators that plain PyTorch does not."""
    epochs = 3
    module = digits_module(dropout=0.3)
    bare_trainer(max_epochs=epochs).fit(module, train_loader(), val_loader())

    plain = digits_module(dropout=0.3)
    optimizer = plain.configure_optimizers()
    train, val = train_loader(), val_loader()
    for _ in range(epochs):
        for image, digit in train:
            loss = F.cross_entropy(plain(image), digit)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for _ in val:
            pass
    assert same_weights(module, plain)
    assert not same_weights(module, digits_module(dropout=0.3))


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


# ---- when it stops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps", "epochs"),
    [
        ({"max_epochs": 3}, 12, 3),
        ({"max_epochs": 0}, 0, 0),
        ({"max_steps": 6}, 6, 2),
        ({"max_steps": 8}, 8, 2),
        ({"max_steps": 0}, 0, 0),
        ({"max_epochs": 1, "max_steps": 100}, 4, 1),
        ({"max_epochs": 9, "max_steps": 5}, 5, 2),
        ({"max_epochs": 2, "limit_train_batches": 3}, 6, 2),
        ({"max_epochs": 2, "limit_train_batches": 99}, 8, 2),
        ({"max_steps": 5, "limit_train_batches": 1}, 5, 5),
    ],
)
def test_how_long_it_trains(options: dict[str, Any], steps: int, epochs: int) -> None:
    trainer = bare_trainer(**options)
    trainer.fit(Scripted(), numbers(4))
    assert (trainer.global_step, trainer.epochs_done, trainer.current_epoch) == (steps, epochs, epochs)


@pytest.mark.parametrize(("min_epochs", "epochs"), [(0, 1), (1, 1), (3, 3), (9, 4)])
def test_who_asks_to_stop_waits_for_min_epochs(min_epochs: int, epochs: int) -> None:
    def stop(trainer: sl.Trainer, _module: Any) -> None:
        trainer.should_stop = True

    trainer = bare_trainer(max_epochs=4, min_epochs=min_epochs, callbacks=on_hook("on_train_epoch_end", stop))
    trainer.fit(Scripted(), numbers(2))
    assert trainer.epochs_done == epochs


def test_a_hook_that_returns_minus_one_skips_the_rest_of_the_epoch() -> None:
    class Skips(Scripted):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    trainer = bare_trainer(max_epochs=3)
    trainer.fit(Skips(), numbers(5))
    assert (trainer.epochs_done, trainer.global_step) == (3, 6)


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


def once(count: int) -> Iterator[Any]:
    yield from numbers(count)


@pytest.mark.parametrize(
    ("loader", "epoch"), [(DataLoader(TensorDataset(torch.zeros(0))), 0), ([], 0), (once(0), 0), (once(2), 1)]
)
def test_an_epoch_without_a_batch_is_an_error(loader: Any, epoch: int) -> None:
    """An iterator that is used up would otherwise train on nothing for the rest of the run, or for ever."""
    trainer = bare_trainer(max_steps=5)
    with pytest.raises(TrainingError, match="The training loader has no batch"):
        trainer.fit(Scripted(), loader)
    assert trainer.epochs_done == epoch


# ---- what a user may write -------------------------------------------------------------------------------------------


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


def test_a_module_knows_its_trainer_only_in_and_after_a_run() -> None:
    module = Scripted()
    with pytest.raises(TrainingError, match=r"Scripted is not attached to a Trainer: call trainer\.fit"):
        _ = module.trainer
    assert (module.current_epoch, module.global_step) == (0, 0)
    module.log("anywhere", 1.0)
    trainer = bare_trainer(max_epochs=2)
    trainer.fit(module, numbers(3))
    assert module.trainer is trainer
    assert (module.current_epoch, module.global_step) == (2, 6)
    assert (trainer.world_size, trainer.global_rank, trainer.is_global_zero) == (1, 0, True)
    assert module.device == torch.device("cpu")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_an_accelerator_that_is_not_there(accelerator: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"accelerator='{accelerator}', but this machine has cpu: choose one of"):
        new_trainer(tmp_path / "runs", accelerator=accelerator, max_epochs=1).fit(Scripted(), numbers(1))
    assert not (tmp_path / "runs").exists()
    assert pick_device("auto") == torch.device("cpu")


class Named(NamedTuple):
    """A batch with names."""

    x: Tensor
    y: int


class HasTo:
    """A batch that knows how to move, such as those of tokenizers."""

    device = torch.device("cpu")

    def to(self, device: torch.device, **_options: Any) -> HasTo:
        self.device = device
        return self


def test_batches_of_any_shape_are_moved() -> None:
    x = torch.zeros(2)
    batch: Any = {"a": [x, (x, "text")], "b": Named(x, 3), "c": HasTo(), "d": None}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["a"][1][1] == "text"
    assert moved["b"].x.is_meta
    assert (type(moved["b"]), moved["b"].y, moved["d"]) == (Named, 3, None)
    assert moved["c"].device.type == "meta"
    assert batch["a"][0] is x


# ---- the other entry points ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_stage_without_data(stage: str) -> None:
    with pytest.raises(ConfigError, match=f"There is no data to {stage}"):
        getattr(bare_trainer(), stage)(Scripted(), datamodule=Loaders(train=numbers(1)))


def test_a_trainer_fits_again_as_if_it_were_new(tmp_path: Path) -> None:
    """Its second run has a directory, counters and callbacks' states of its own."""
    stopping = sl.EarlyStopping("score", patience=2)
    trainer = new_trainer(tmp_path, max_epochs=9, callbacks=[stopping, sl.ModelCheckpoint(monitor="score")])
    runs = [trainer.fit(Scripted([0.1, 1, 1, 1, 1, 1]), numbers(1), numbers(1)) for _ in range(2)]
    assert [run.url for run in runs] == [str(tmp_path / "scripted" / f"version_{n}") for n in (0, 1)]
    for run in runs:
        assert run.best_url == f"{run.url}/checkpoints/epoch=0-step=1"
        assert run.last_url == f"{run.url}/checkpoints/epoch=2-step=3"
        assert run.checkpoint.url == run.best_url
    assert trainer.global_step == 3
    assert (stopping.wait_count, stopping.stopped_epoch) == (2, 2)


# ---- hooks -----------------------------------------------------------------------------------------------------------


def test_callbacks_hear_of_an_error_and_are_taken_down() -> None:
    heard: list[Any] = []
    callbacks = [
        on_hook("on_exception", lambda _t, _m, error: heard.append(error)),
        on_hook("teardown", lambda _t, _m, stage: heard.append(stage)),
    ]
    stop = on_hook("on_train_batch_end", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        bare_trainer(max_epochs=1, callbacks=[*callbacks, stop]).fit(Scripted(), numbers(2))
    assert [type(item) for item in heard] == [KeyboardInterrupt, str]


def raise_interrupt(*_arguments: Any) -> None:
    raise KeyboardInterrupt


def test_callbacks_hear_of_an_error_in_setup() -> None:
    class Broken(DataModule):
        def setup(self, stage: str) -> None:
            raise RuntimeError("no data today")

    heard: list[Any] = []
    callbacks = [
        on_hook("on_exception", lambda _t, _m, error: heard.append(str(error))),
        on_hook("teardown", lambda _t, _m, stage: heard.append(stage)),
    ]
    with pytest.raises(RuntimeError, match="no data today"):
        bare_trainer(max_epochs=1, callbacks=callbacks).fit(Scripted(), datamodule=Broken())
    assert heard == ["no data today", "fit"]


def test_callbacks_that_monitor_see_what_all_others_logged_at_the_end_of_the_epoch() -> None:
    class LogsLate(Scripted):
        def on_train_epoch_end(self) -> None:
            self.log("late", 1.5)

    class Judge(Callback):
        monitors = True
        seen: list[float] = []

        def on_train_epoch_end(self, trainer: sl.Trainer, module: sl.Module) -> None:
            self.seen.append(float(trainer.callback_metrics["late"]))
            module.log("judged", 1.0)

    judge = Judge()
    run = bare_trainer(max_epochs=2, callbacks=[judge]).fit(LogsLate(), numbers(1))
    assert judge.seen == [1.5, 1.5]
    assert run.metrics == {"late": 1.5, "judged": 1.0}


def test_callbacks_act_in_order_and_those_that_save_come_last(tmp_path: Path) -> None:
    first, second = on_hook("setup", lambda *_: None), on_hook("setup", lambda *_: None)
    checkpoint, stopping = sl.ModelCheckpoint(), sl.EarlyStopping("score")
    trainer = new_trainer(tmp_path, callbacks=[checkpoint, stopping, first, second])
    assert trainer.callbacks == [first, second, stopping, checkpoint]
    assert trainer.checkpoint_callback is checkpoint
