"""The hooks that both have come in PyTorch Lightning's order, with its epoch and step counts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from training import bare_trainer, numbers

from shipline.train import Callback, DataModule, Module
from shipline.train.hooks import ModuleHooks
from shipline.train.loops.optimization import OptimizationHooks

Event = tuple[str, int, int]  # who.hook, current_epoch, global_step

# Lightning warns of few data workers, of no logger, and of its own future.
pytestmark = pytest.mark.filterwarnings("ignore")


def hooks_of(cls: type) -> list[str]:
    return [name for name in vars(cls) if not name.startswith("_") and callable(getattr(cls, name))]


# What they do remains; what users call, and Lightning does not, is no hook.
CALLED_BY_USERS = {
    "optimizers", "lr_schedulers", "manual_backward", "clip_gradients", "toggle_optimizer", "untoggle_optimizer",
    "trainer",
}  # fmt: skip
MODULE_HOOKS = sorted({*hooks_of(ModuleHooks), *hooks_of(OptimizationHooks)} - CALLED_BY_USERS)
CALLBACK_HOOKS = [name for name in vars(Callback) if name.startswith(("on_", "setup", "teardown"))]


@pytest.fixture(autouse=True)
def quiet_lightning() -> Iterator[None]:
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def recording_callback(base: type, who: str, events: list[Event], **attributes: Any) -> Any:
    """A callback that writes down each of its hooks."""

    def hook(name: str) -> Any:
        def act(_self: Any, trainer: Any, *_arguments: Any, **_named: Any) -> None:
            events.append((f"{who}.{name}", trainer.current_epoch, trainer.global_step))

        return act

    return type(who, (base,), {name: hook(name) for name in CALLBACK_HOOKS} | attributes)()


def recording_module(base: Any, events: list[Event]) -> Any:  # noqa: C901 -- a class with its hooks
    """The class of a module that writes down each of its hooks and steps."""

    def hook(name: str) -> Any:
        def act(self: Any, *_arguments: Any) -> None:
            events.append((f"module.{name}", self.trainer.current_epoch, self.trainer.global_step))

        return act

    class Recording(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            hook("training_step")(self)
            batch = batch["a"] if isinstance(batch, dict) else batch
            return self.layer(batch[0][:, None]).mean()

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            hook("validation_step")(self)
            self.log("value", 1.0)

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            hook("test_step")(self)

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            hook("predict_step")(self)

        def configure_optimizers(self) -> Any:
            hook("configure_optimizers")(self)
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            each = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            return [optimizer], [{"scheduler": each, "interval": "step"}, {"scheduler": each, "interval": "epoch"}]

    def passing(name: str) -> Any:
        def act(self: Any, *arguments: Any, **named: Any) -> Any:
            hook(name)(self)
            return getattr(super(Recording, self), name)(*arguments, **named)

        return act

    for name in MODULE_HOOKS:
        setattr(Recording, name, passing(name))
    return Recording


def recording_data(base: Any, events: list[Event], train: Any = None, val: Any = None) -> Any:
    """A DataModule that writes down what is asked of it."""

    def hook(name: str, returned: Any = None) -> Any:
        def act(_self: Any, stage: Any = None) -> Any:
            events.append((f"data.{name} {getattr(stage, 'value', stage)}", 0, 0))
            return returned() if returned is not None else None

        return act

    hooks = {name: hook(name) for name in ("prepare_data", "setup", "teardown")}
    train, val = train or (lambda: numbers(6, 2)), val or (lambda: numbers(4, 2))
    hooks |= {"train_dataloader": hook("train_dataloader", train)}
    hooks |= {f"{stage}_dataloader": hook(f"{stage}_dataloader", val) for stage in ("val", "test", "predict")}
    return type("Recording", (base,), hooks)()


def run(trainer: Any, module: Any, data: Any) -> None:
    trainer.fit(module, datamodule=data)
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    trainer.predict(module, datamodule=data)


def stream() -> Any:
    """Six numbers by twos, and nobody knows how many."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter((torch.tensor(float(number)),) for number in range(6))

    return DataLoader(Stream(), 2)


def by_hand(module: type) -> type:
    """The recording module with manual optimization."""

    class ByHand(module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    return ByHand


def with_last_skipped(module: type) -> type:
    """The recording module, which leaves its epoch at the third batch, and returns no loss for the second."""

    class Skipping(module):  # type: ignore[misc]
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            super().on_train_batch_start(batch, batch_idx)
            return -1 if batch_idx == 2 else None

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 1 else loss

    return Skipping


CASES: dict[str, dict[str, Any]] = {
    "plain": {"max_epochs": 2, "num_sanity_val_steps": 1},
    "every second epoch": {"max_epochs": 3, "num_sanity_val_steps": 0, "check_val_every_n_epoch": 2},
    "limits": {"max_epochs": 2, "limit_train_batches": 2, "limit_val_batches": 1},
    "fractions": {"max_epochs": 1, "limit_train_batches": 0.7, "limit_val_batches": 0.5},
    "no validation": {"max_epochs": 1, "limit_val_batches": 0},
    "accumulation": {"max_epochs": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    "clipping": {"max_epochs": 1, "gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"},
    "every second batch": {"max_epochs": 2, "val_check_interval": 2},
    "thrice an epoch": {"max_epochs": 2, "val_check_interval": 1 / 3},
    "batches over epochs": {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None},
    "accumulation and validation within": {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": 1},
    "steps": {"max_steps": 4},
    "steps and epochs": {"max_steps": 7, "max_epochs": 2, "min_epochs": 1},
    "loaders anew": {"max_epochs": 3, "reload_dataloaders_every_n_epochs": 2},
    "the same batch": {"max_epochs": 2, "overfit_batches": 1},
    "fast": {"fast_dev_run": True},
    "fast, by number": {"fast_dev_run": 2},
    "a stream": {"max_epochs": 2, "train": stream, "val_check_interval": 2},
    "several loaders": {
        "max_epochs": 2, "train": lambda: {"a": numbers(6, 2), "b": numbers(4, 2)},
        "val": lambda: [numbers(4, 2), numbers(2, 1)],
    },
    "by hand": {"max_epochs": 2, "change": by_hand},
    "skipped": {"max_epochs": 2, "change": with_last_skipped},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_hooks_come_in_the_order_of_lightning(case: str) -> None:
    options = dict(CASES[case])
    loaders = {name: options.pop(name) for name in ("train", "val") if name in options}
    change = options.pop("change", lambda module: module)

    expected: list[Event] = []
    callbacks = [
        recording_callback(Checkpoint, "monitor", expected),
        recording_callback(lightning.Callback, "first", expected),
        recording_callback(lightning.Callback, "second", expected),
    ]
    theirs = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        **options,
    )  # fmt: skip
    module = change(recording_module(lightning.LightningModule, expected))()
    run(theirs, module, recording_data(lightning.LightningDataModule, expected, **loaders))

    found: list[Event] = []
    callbacks = [
        recording_callback(Callback, "monitor", found, monitors=True),
        recording_callback(Callback, "first", found),
        recording_callback(Callback, "second", found),
    ]
    ours = bare_trainer(callbacks=callbacks, **options)
    run(ours, change(recording_module(Module, found))(), recording_data(DataModule, found, **loaders))

    assert found == expected
    hooks = {name for name, _, _ in found}
    assert {"first.on_train_batch_end", "module.on_before_optimizer_step", "monitor.on_train_epoch_end"} <= hooks


def test_hooks_come_in_the_order_of_lightning_until_an_error() -> None:
    def fail(*_arguments: Any) -> None:
        raise RuntimeError("stop here")

    expected: list[Event] = []
    callback = recording_callback(lightning.Callback, "first", expected, on_after_backward=fail)
    theirs = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback],
    )  # fmt: skip
    data = recording_data(lightning.LightningDataModule, expected)
    with pytest.raises(RuntimeError, match="stop here"):
        theirs.fit(recording_module(lightning.LightningModule, expected)(), datamodule=data)

    found: list[Event] = []
    ours = bare_trainer(max_epochs=1, callbacks=[recording_callback(Callback, "first", found, on_after_backward=fail)])
    with pytest.raises(RuntimeError, match="stop here"):
        ours.fit(recording_module(Module, found)(), datamodule=recording_data(DataModule, found))
    assert expected[-1][0] == "first.on_exception"
    # Lightning leaves it at that; we take down what was set up.
    assert found == [*expected, ("data.teardown fit", 0, 0), ("first.teardown", 0, 0), ("module.teardown", 0, 0)]


def test_a_data_module_may_find_that_there_is_nothing_to_validate() -> None:
    found: list[Event] = []
    trainer = bare_trainer(max_epochs=2, num_sanity_val_steps=2)
    trainer.fit(recording_module(Module, found)(), datamodule=recording_data(DataModule, found, val=list))
    assert not [name for name, _, _ in found if name.startswith("module.on_validation_epoch")]
    assert trainer.progress.epochs_done == 2
