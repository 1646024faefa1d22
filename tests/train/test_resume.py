"""A resumed run ends where the undisturbed one does, bit for bit."""

from __future__ import annotations

import itertools
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from training import (
    Mlp,
    Scripted,
    metric_rows,
    new_trainer,
    numbers,
    on_hook,
    rows,
    same_weights,
    train_loader,
    val_loader,
)

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError, IntegrityError, NotFoundError
from shipline.store import open_store


class Augmented(Dataset[Any]):
    """Rows with noise from each of the three generators."""

    def __init__(self, count: int) -> None:
        self.rows = rows(0, count)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        image, digit = self.rows[index]
        return image + 0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * torch.rand(1), digit


class Everything(Mlp):
    """Dropout, batch norm, momentum, a scheduler by steps and one by epochs: all that a run has in its state."""

    def __init__(self) -> None:
        super().__init__(hidden=16, dropout=0.4)
        self.norm = nn.BatchNorm1d(64)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(image))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("rate", self.trainer.optimizer.param_groups[0]["lr"])
        self.log("train_epoch", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=0)
        return [optimizer], [{"scheduler": cosine, "interval": "step"}, {"scheduler": plateau, "monitor": "val_loss"}]


def fit(
    root: Path, epochs: int, ckpt_path: str | None = None, seed: int = 0, **options: Any
) -> tuple[sl.Trainer, sl.train.Run]:
    sl.seed_everything(seed)
    stopping = sl.EarlyStopping("val_acc", mode="max", patience=50, min_delta=0.05)
    keep = sl.ModelCheckpoint(monitor="val_loss", save_top_k=2)
    trainer = new_trainer(root, max_epochs=epochs, callbacks=[stopping, keep], log_every_n_steps=1, **options)
    train = DataLoader(Augmented(128), batch_size=32, shuffle=True)
    return trainer, trainer.fit(Everything(), train, val_loader(64), ckpt_path=ckpt_path)


def stopping(trainer: sl.Trainer) -> dict[str, Any]:
    return next(c for c in trainer.callbacks if isinstance(c, sl.EarlyStopping)).state_dict()


@pytest.mark.parametrize("split", [1, 2, 3])
def test_some_epochs_and_the_rest_are_all_of_them(tmp_path: Path, split: int) -> None:
    """Shuffling, augmentation, dropout, optimizer, schedulers, counters, metrics and checkpoints."""
    whole_trainer, whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", split)
    resumed_trainer, resumed = fit(tmp_path / "parts", 4, ckpt_path="last", seed=99)

    assert same_weights(resumed.module, whole.module)
    assert resumed.metrics == whole.metrics
    assert (resumed_trainer.global_step, resumed_trainer.epochs_done) == (16, 4)
    assert str(resumed_trainer.optimizer.state_dict()) == str(whole_trainer.optimizer.state_dict())
    assert stopping(resumed_trainer) == stopping(whole_trainer)
    assert metric_rows(str(resumed.url)) == metric_rows(str(whole.url))
    checkpoints = [open_store(f"{run.url}/checkpoints").list() for run in (whole, resumed)]
    assert checkpoints[0] == checkpoints[1]
    for name in ("best", "last"):
        assert (
            open_checkpoint(f"{resumed.url}/{name}").manifest.epoch
            == open_checkpoint(f"{whole.url}/{name}").manifest.epoch
        )


@pytest.mark.parametrize("given_to", ["loader", "sampler"])
def test_a_generator_of_the_loaders_own_goes_on_too(tmp_path: Path, given_to: str) -> None:
    """Made anew with its seed, it would shuffle the third epoch as it did the first."""

    def fit(name: str, epochs: int, ckpt_path: str | None = None) -> Any:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(5)
        data = rows(0, 128)
        if given_to == "loader":
            loader = DataLoader(data, batch_size=32, shuffle=True, generator=generator)
        else:
            loader = DataLoader(data, batch_size=32, sampler=RandomSampler(data, generator=generator))
        module = Mlp()
        new_trainer(tmp_path, name=name, max_epochs=epochs).fit(module, loader, ckpt_path=ckpt_path)
        return module

    whole = fit("whole", 4)
    fit("parts", 2)
    assert same_weights(fit("parts", 4, "last"), whole)


def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(tmp_path: Path) -> None:
    """What the tests above rest upon."""
    first, again, other = (fit(tmp_path / str(n), 2, seed=seed)[1] for n, seed in enumerate((0, 0, 1)))
    assert same_weights(first.module, again.module)
    assert metric_rows(str(first.url)) == metric_rows(str(again.url))
    assert not same_weights(first.module, other.module)


def test_a_resumed_run_goes_on_in_its_directory(url: str) -> None:
    def fit(epochs: int, ckpt_path: str | None = None) -> sl.train.Run:
        return new_trainer(url, max_epochs=epochs, log_every_n_steps=1).fit(
            Scripted([1.0] * 4), numbers(1), numbers(1), ckpt_path=ckpt_path
        )

    first = fit(2)
    second = fit(4, "last")
    assert second.url == first.url == f"{url}/scripted/version_0"
    assert open_store(f"{url}/scripted").list() == ["checkpoints.json", "version_0"]
    assert [row["epoch"] for row in metric_rows(str(second.url))] == ["0", "1", "2", "3"]
    assert open_store(f"{second.url}/checkpoints").list() == ["epoch=3-step=4"]
    assert open_checkpoint(f"{url}/scripted/last").manifest.global_step == 4


@pytest.mark.parametrize("name", ["best", "last"])
def test_by_name_a_run_goes_on_from_the_newest_run_of_its_experiment(tmp_path: Path, name: str) -> None:
    fit(tmp_path, 1)
    fit(tmp_path, 1)
    _, run = fit(tmp_path, 2, ckpt_path=name)
    assert run.url == str(tmp_path / "everything" / "version_1")


def test_rows_after_the_checkpoint_are_written_anew(tmp_path: Path) -> None:
    """A run that failed in its second epoch left rows that the resumed one does not repeat."""

    class Fails(Scripted):
        fail_at = 5

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", float(self.global_step))
            if self.global_step == self.fail_at:
                raise RuntimeError("power cut")
            return super().training_step(batch, batch_idx)

    def trainer() -> sl.Trainer:
        return new_trainer(tmp_path, max_epochs=2, log_every_n_steps=1)

    with pytest.raises(RuntimeError, match="power cut"):
        trainer().fit(Fails(), numbers(4))
    [version] = [name for name in open_store(str(tmp_path / "fails")).list() if name.startswith("version")]
    assert len(metric_rows(str(tmp_path / "fails" / version))) == 5
    module = Fails()
    module.fail_at = -1
    run = trainer().fit(module, numbers(4), ckpt_path="last")
    assert [(row["step"], row["x"]) for row in metric_rows(str(run.url))] == [
        (str(step), f"{step:.1f}") for step in range(8)
    ]


@pytest.mark.parametrize("where", ["other root", "other name", "own directory"])
def test_going_on_from_a_foreign_checkpoint_makes_a_new_run(tmp_path: Path, where: str) -> None:
    """Its weights and counters are taken up; its directory, its rows and its checkpoints are left alone."""
    keep = sl.ModelCheckpoint(dirpath=str(tmp_path / "elsewhere") if where == "own directory" else None)
    first = new_trainer(tmp_path / "one", max_epochs=2, callbacks=keep).fit(Scripted(), numbers(1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    root = tmp_path / "two" if where == "other root" else tmp_path / "one"
    trainer = new_trainer(root, max_epochs=3, name="mine", callbacks=sl.ModelCheckpoint(save_top_k=3))
    run = trainer.fit(Scripted(), numbers(1), ckpt_path=first.last_url)
    assert run.url == str(root / "mine" / "version_0")
    assert trainer.global_step == 3
    assert open_store(f"{run.url}/checkpoints").list() == ["epoch=2-step=3"]
    assert open_checkpoint(f"{run.url}/best").manifest.epoch == open_checkpoint(f"{run.url}/last").manifest.epoch == 2
    assert {path: path.read_bytes() for path in before} == before


def test_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    _, first = fit(tmp_path, 2)
    trainer, again = fit(tmp_path, 2, ckpt_path="last")
    assert same_weights(first.module, again.module)
    assert (trainer.global_step, again.url) == (8, first.url)


def test_what_is_not_in_the_checkpoint_starts_anew(tmp_path: Path) -> None:
    """A callback that the first run did not have."""
    new_trainer(tmp_path, max_epochs=1).fit(Scripted([3.0]), numbers(1), numbers(1))
    stopping = sl.EarlyStopping("score", patience=2)
    trainer = new_trainer(tmp_path, max_epochs=9, callbacks=stopping)
    trainer.fit(Scripted([3.0] * 9), numbers(1), numbers(1), ckpt_path="last")
    assert trainer.epochs_done == 4


def test_the_state_is_back_before_the_first_hook(tmp_path: Path) -> None:
    _, first = fit(tmp_path, 1)
    seen: list[Any] = []

    def look(trainer: sl.Trainer, module: Any) -> None:
        seen.append((same_weights(module, first.module), trainer.global_step, trainer.current_epoch))

    keep = sl.ModelCheckpoint(monitor="val_loss", save_top_k=2)
    trainer = new_trainer(tmp_path, max_epochs=1, callbacks=[keep, on_hook("on_fit_start", look)])
    trainer.fit(Everything(), train_loader(32), val_loader(32), ckpt_path="last")
    assert seen == [(True, 4, 0)]  # the epoch is counted when the next one begins, as in Lightning


@pytest.mark.parametrize(
    ("ckpt_path", "error", "message"),
    [
        ("last", NotFoundError, r"No checkpoint at .*/nobody/last; found beside it: nothing"),
        ("nowhere/at/all", NotFoundError, "No checkpoint at .*nowhere/at/all"),
    ],
)
def test_a_checkpoint_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ckpt_path: str, error: Any, message: str
) -> None:
    """No silent start from the first epoch, and no directory for a run that never was."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        new_trainer(tmp_path, name="nobody", max_epochs=1).fit(Scripted(), numbers(1), ckpt_path=ckpt_path)
    assert list(tmp_path.iterdir()) == []


class OtherSchedulers(Mlp):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class OtherGroups(Mlp):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([{"params": [p]} for p in self.parameters()], lr=0.1, momentum=0.9)


@pytest.mark.parametrize("other", [OtherSchedulers, OtherGroups])
def test_another_optimizer_is_named(tmp_path: Path, other: type[Mlp]) -> None:
    first = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(32))
    with pytest.raises(ConfigError, match="configure_optimizers returns another optimizer, or other schedulers, than"):
        new_trainer(tmp_path, max_epochs=2).fit(other(), train_loader(32), ckpt_path=first.last_url)


def test_another_module_is_named(tmp_path: Path) -> None:
    first = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(32))
    with pytest.raises(IntegrityError, match=r"(?s)do not fit Scripted: .*Missing key.*weight"):
        new_trainer(tmp_path, max_epochs=2).fit(Scripted(), numbers(1), ckpt_path=first.last_url)


# ---- Ctrl-C and SIGTERM ----------------------------------------------------------------------------------------------


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


# ---- a damaged checkpoint --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "manifest", "pointer"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """It says so, deletes nothing, and the run still ends as it should."""

    def fit(name: str, epochs: int, ckpt_path: str | None = None) -> Any:
        torch.manual_seed(0)
        module = Mlp()
        keep = sl.ModelCheckpoint(save_top_k=-1)
        run = new_trainer(tmp_path, name=name, max_epochs=epochs, callbacks=keep).fit(
            module, train_loader(64), ckpt_path=ckpt_path
        )
        return module, run

    _, run = fit("parts", 3)
    [weights] = Path(run.last_url).rglob("weights.safetensors")
    data = bytearray(weights.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(data[:-7])
    elif damage == "gone":
        weights.unlink()
    elif damage == "manifest":
        (Path(run.last_url) / "manifest.json").write_text("{")
    else:
        (tmp_path / "parts" / "checkpoints.json").write_text("[]")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with caplog.at_level("WARNING", logger="shipline"):
        module, _ = fit("parts", 4, "last")
    assert "Going on from the one before: " in caplog.text
    newest = "epoch=2-step=6" if damage == "pointer" else "epoch=1-step=4"
    assert f"{newest}. Nothing was deleted." in caplog.text
    assert same_weights(module, fit("whole", 4)[0])
    assert {path for path in before if not path.exists()} == set()


def test_where_every_checkpoint_is_damaged_the_first_reason_is_given(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(32))
    for weights in Path(str(run.url)).rglob("weights.safetensors"):
        weights.write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"weights\.safetensors has 0 bytes"):
        new_trainer(tmp_path, max_epochs=2).fit(Mlp(), train_loader(32), ckpt_path="last")


def test_auto_begins_where_there_is_no_checkpoint_yet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is started again by itself has one command line for the first time and for all others."""
    with pytest.raises(NotFoundError):
        new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(32), ckpt_path="last")
    with caplog.at_level("INFO", logger="shipline"):
        first = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(32), ckpt_path="auto")
    assert "There is no checkpoint of " in caplog.text
    again = new_trainer(tmp_path, max_epochs=3)
    assert again.fit(Mlp(), train_loader(32), ckpt_path="auto").url == first.url
    assert (again.epochs_done, again.global_step) == (3, 3)


def test_a_checkpoint_of_weights_only_resumes_no_run(tmp_path: Path) -> None:
    keep = sl.ModelCheckpoint(save_weights_only=True)
    first = new_trainer(tmp_path, max_epochs=1, callbacks=keep).fit(Mlp(), train_loader(32))
    assert same_weights(Mlp.load_from_checkpoint(str(first.last_url)), first.module)
    with pytest.raises(ConfigError, match="holds weights only, so no run can go on from it"):
        new_trainer(tmp_path, max_epochs=2).fit(Mlp(), train_loader(32), ckpt_path=first.last_url)
