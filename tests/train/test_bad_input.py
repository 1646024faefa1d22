"""What users get wrong, or what breaks under them: each error says what was set, what was found, what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from training import Mlp, bare_trainer, new_trainer, on_hook, rows, same_weights, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError, IntegrityError, TrainingError

# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradient_clip": 1.0},
            r"no option 'gradient_clip'\. Did you mean 'gradient_clip_\w+'\? Known: accelerator, ",
        ),
        ({"gpus": 1}, r"Trainer has no option 'gpus'\. .*Known: accelerator, strategy, devices"),
        ({"max_epochs": "3"}, r"max_epochs='3'; set a whole number"),
        ({"max_epochs": 2.5}, r"max_epochs=2\.5; set a whole number"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0; set a whole number from 1 on"),
        ({"accumulate_grad_batches": {0: 2}}, r"accumulate_grad_batches=\{0: 2\}; set a whole number"),
        ({"gradient_clip_val": float("nan")}, "gradient_clip_val=nan; set a number from 0 on"),
        ({"gradient_clip_val": "1"}, "gradient_clip_val='1'; set a number from 0 on"),
        ({"gradient_clip_algorithm": "norms"}, "gradient_clip_algorithm='norms'; choose one of 'norm', 'value'"),
        ({"nonfinite_loss": "warn"}, "nonfinite_loss='warn'; choose one of 'raise', 'skip', 'stop', 'ignore'"),
        ({"deterministic": "yes"}, "deterministic='yes'; choose one of None, True, False, 'warn'"),
        ({"val_check_interval": 0}, "val_check_interval=0; set a number of batches, a share of them, or a time"),
        ({"val_check_interval": 1.5}, r"val_check_interval=1\.5; set a whole number"),
        (
            {"val_check_interval": 0.5, "check_val_every_n_epoch": None},
            "check_val_every_n_epoch=None, which counts batches over epochs, and val_check_interval=0.5",
        ),
        ({"val_check_interval": "1 hour"}, "val_check_interval='1 hour'"),
        ({"max_time": "1:00"}, "max_time='1:00'|duration='1:00'"),
        ({"max_time": {"hour": 1}}, "hour"),
        ({"overfit_batches": -1}, "overfit_batches=-1; set a whole number from 0 on, or a share"),
        ({"limit_train_batches": "all"}, "limit_train_batches='all'; set a whole number"),
        ({"fast_dev_run": -1}, "fast_dev_run=-1; set True, False or a number of batches"),
        ({"devices": "two"}, "devices='two'; set a number of workers for each machine, or 'auto'"),
        ({"devices": 2, "workers": 3}, "workers=3, and devices=2 on num_nodes=1, which makes 2: set one of them"),
        ({"accelerator": "gpuu"}, "'gpuu'"),
        ({"strategy": "dpd"}, r"'dpd'\. Did you mean 'ddp'"),
        ({"profiler": "advnced"}, r"'advnced'\. Did you mean 'advanced'"),
        ({"logger": "tensorbord"}, r"'tensorbord'\. Did you mean 'tensorboard'"),
        ({"barebones": True, "enable_checkpointing": True}, "barebones=True, which leaves out enable_checkpointing"),
    ],
    ids=str,
)
def test_options_that_mean_nothing_are_named(options: dict[str, Any], message: str) -> None:
    quiet = {} if "barebones" in options else {"logger": False, "enable_checkpointing": False}
    with pytest.raises(ConfigError, match=message):
        sl.Trainer(**(quiet | options)).fit(Mlp(), train_loader(32))


# ---- losses ----------------------------------------------------------------------------------------------------------


class Spoils(Mlp):
    """Its loss is spoiled in one batch."""

    def __init__(self, spoil: Any, epoch: int = 0, batch: int = 1) -> None:
        super().__init__()
        self.spoil, self.where = spoil, (epoch, batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return self.spoil(loss) if (self.current_epoch, batch_idx) == self.where else loss


def nan(loss: Tensor) -> Tensor:
    return loss * float("nan")


def test_a_loss_that_is_not_finite_names_epoch_batch_and_step() -> None:
    with pytest.raises(
        TrainingError, match=r"The loss is nan \(epoch 1, batch 2, step 6\): .*look at the batch.*nonfinite_loss='skip'"
    ):
        bare_trainer(max_epochs=2).fit(Spoils(nan, 1, 2), train_loader(128))


def test_weights_that_came_of_a_bad_loss_are_in_no_checkpoint(tmp_path: Path) -> None:
    """What was saved before is the last there is, and goes on."""
    keep = sl.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1, save_on_exception=True)
    with pytest.raises(TrainingError, match="The loss is nan"):
        new_trainer(tmp_path, max_epochs=1, callbacks=keep).fit(Spoils(nan, 0, 2), train_loader(128))
    saved = Spoils.load_from_checkpoint(str(tmp_path / "spoils" / "last"), spoil=nan)
    assert all(bool(parameter.isfinite().all()) for parameter in saved.parameters())


@pytest.mark.parametrize(("policy", "steps"), [("skip", 8), ("stop", 2)])
def test_what_is_done_about_it_is_said(policy: str, steps: int, caplog: pytest.LogCaptureFixture) -> None:
    """The log names step and batch; the weights stay finite."""
    trainer, module = bare_trainer(max_epochs=2, nonfinite_loss=policy), Spoils(nan)
    with caplog.at_level("WARNING", logger="shipline"):
        trainer.fit(module, train_loader(128))
    assert trainer.progress.all_batches >= steps
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    assert "The loss is nan (epoch 0, batch 1, step 1)" in caplog.text


@pytest.mark.parametrize("spoil", [nan, lambda _loss: None], ids=["nan", "none"])
@pytest.mark.parametrize("every", [1, 2])
def test_with_scaled_gradients_a_batch_is_skipped_too(spoil: Any, every: int) -> None:
    """Half precision on the CPU has a scaler as well; no weight moves for the batch."""
    weights: list[Any] = []
    look = on_hook(
        "on_train_batch_end", lambda _t, module, *_a: weights.append([p.detach().clone() for p in module.parameters()])
    )
    trainer = bare_trainer(
        max_epochs=1, precision="16-mixed", nonfinite_loss="skip", accumulate_grad_batches=every, callbacks=look
    )
    module = Spoils(spoil, 0, 2 if every == 2 else 1)
    trainer.fit(module, train_loader(128))
    assert trainer.precision_plugin.scales
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    if every == 1:
        assert all(map(torch.equal, weights[0], weights[1]))
        assert not all(map(torch.equal, weights[1], weights[2]))


# ---- metrics that nobody logs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: sl.ModelCheckpoint(monitor="val_los"),
            r"ModelCheckpoint monitors 'val_los'.* Did you mean 'val_loss'",
        ),
        (lambda: sl.EarlyStopping("val_ac"), r"EarlyStopping monitors 'val_ac'.* Did you mean 'val_acc'"),
        (lambda: sl.EarlyStopping("f1"), r"EarlyStopping monitors 'f1', which nobody logged"),
    ],
)
def test_a_metric_that_nobody_logs_lists_those_that_are(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{message}.*Logged: .*val_loss, .*val_acc"):
        new_trainer(tmp_path, max_epochs=1, callbacks=make()).fit(Mlp(), train_loader(64), val_loader())


# ---- checkpoints -----------------------------------------------------------------------------------------------------


class Deeper(Mlp):
    """One layer more, and another name for the last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = self.layers.pop(3)
        self.extra = torch.nn.Linear(3, 3)


@pytest.mark.parametrize("entry", ["fit", "validate", "predict"])
def test_a_checkpoint_of_another_module_names_the_keys(entry: str, tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(32))
    trainer, module = new_trainer(tmp_path, max_epochs=2), Deeper()
    with pytest.raises(IntegrityError) as raised:
        getattr(trainer, entry)(module, train_loader(32), ckpt_path=run.last_url)
    text = str(raised.value)
    assert "Deeper" in text
    missing, _, unexpected = text.partition("nexpected")
    assert "head.weight" in missing
    assert "extra.bias" in missing
    assert "layers.3.weight" in unexpected


# ---- data workers ----------------------------------------------------------------------------------------------------


class Dies(TensorDataset):
    """One row ends the process that loads it, as a crash in a decoder does; another is damaged."""

    row = 60  # in the last of 8 batches: it is asked for when most of the others have been trained on

    def __getitem__(self, index: int) -> Any:
        if index == self.row and torch.utils.data.get_worker_info() is not None:
            os._exit(3)
        return super().__getitem__(index)


class Damaged(Dies):
    def __getitem__(self, index: int) -> Any:
        if index == self.row:
            raise ValueError(f"row {index} cannot be decoded")
        return TensorDataset.__getitem__(self, index)


def test_a_data_worker_that_dies_is_named_and_the_run_goes_on_from_before(tmp_path: Path) -> None:
    """Resumed over data that is mended, it ends as if nothing had happened."""

    def fit(name: str, kind: Any, ckpt_path: str | None = None) -> Mlp:
        torch.manual_seed(0)
        module = Mlp(dropout=0.1)
        data = DataLoader(kind(*rows(0, 64).tensors), 8, num_workers=1, prefetch_factor=1)
        keep = sl.ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
        trainer = new_trainer(tmp_path, name=name, max_epochs=1, callbacks=keep)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module

    with pytest.raises(
        TrainingError,
        match=r"A worker process of the DataLoader died: .*lower num_workers.*num_workers=0 shows which. Resume with",
    ):
        fit("died", Dies)
    assert same_weights(fit("died", TensorDataset, "last"), fit("whole", TensorDataset))


def test_an_error_of_a_row_is_the_datasets_own() -> None:
    with pytest.raises(ValueError, match="row 60 cannot be decoded"):
        bare_trainer(max_epochs=1).fit(Mlp(), DataLoader(Damaged(*rows(0, 64).tensors), 8))
