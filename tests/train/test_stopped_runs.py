"""What becomes of a run that was stopped, by early stopping or by a signal, when it is resumed."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from resuming import Augmented, Everything
from torch.utils.data import DataLoader
from training import Mlp, Scripted, metric_rows, new_trainer, numbers, on_hook, same_weights, train_loader, val_loader

import shipline as sl
from shipline.store import open_store


def test_a_run_that_early_stopping_has_ended_trains_no_further_unless_told_to(tmp_path: Path) -> None:
    """It may have been killed after its last checkpoint, or be started again by itself."""

    def fit(patience: int, ckpt_path: str | None = None, **options: Any) -> int:
        stopping = sl.EarlyStopping("score", patience=patience)
        trainer = new_trainer(tmp_path, max_epochs=9, callbacks=stopping, **options)
        trainer.fit(Scripted([3.0, *[4.0] * 9]), numbers(2), numbers(1), ckpt_path=ckpt_path)
        return trainer.global_step

    assert fit(2) == fit(2, "last") == 6
    assert fit(3, "last") == 8
    assert fit(2, val_check_interval=0.5) == fit(2, "last", val_check_interval=0.5) == 3


def interrupting(hook: str, at: int, number: int) -> sl.Callback:
    """A callback that sends its own process a signal when the hook is called for the n-th time."""
    calls = itertools.count()

    def act(*_arguments: Any) -> None:
        if next(calls) == at:
            os.kill(os.getpid(), number)

    return on_hook(hook, act)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("hook", "at"),
    [
        ("on_train_batch_start", 0), ("on_after_backward", 2), ("on_train_batch_end", 3),
        ("on_validation_batch_end", 3), ("on_validation_epoch_end", 1), ("on_train_epoch_end", 0),
        ("on_before_optimizer_step", 2),
    ],
)  # fmt: skip
def test_a_run_that_is_told_to_end_saves_where_it_stands(
    tmp_path: Path, hook: str, at: int, number: int, code: int
) -> None:
    """In the middle of an accumulation, of a validation, of an epoch; and goes on as if nothing had happened."""

    def fit(name: str, ckpt_path: str | None = None, more: sl.Callback | None = None) -> Any:
        sl.seed_everything(0 if ckpt_path is None else 99)
        module = Everything()
        trainer = new_trainer(
            tmp_path, name=name, max_epochs=2, accumulate_grad_batches=3, log_every_n_steps=1, val_check_interval=2,
            callbacks=[more] if more is not None else None,
        )  # fmt: skip
        run = trainer.fit(module, DataLoader(Augmented(128), 32, shuffle=True), val_loader(64), ckpt_path=ckpt_path)
        return module, metric_rows(str(run.url)), run.metrics

    handlers = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    with pytest.raises(SystemExit) as ended:
        fit("parts", more=interrupting(hook, at, number))
    assert ended.value.code == code
    assert [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)] == handlers
    module, rows_, metrics = fit("parts", "last")
    whole, whole_rows, whole_metrics = fit("whole")
    assert same_weights(module, whole)
    assert (rows_, metrics) == (whole_rows, whole_metrics)


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    """Who cannot wait for the checkpoint need not."""

    def twice(*_arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    trainer = new_trainer(tmp_path, max_epochs=1, callbacks=[on_hook("on_train_batch_start", twice)])
    with pytest.raises(SystemExit):
        trainer.fit(Mlp(), train_loader(64))
    assert (trainer.global_step, trainer.interrupted) == (0, True)
    assert open_store(str(tmp_path / "mlp" / "version_0")).list("checkpoints") == []
