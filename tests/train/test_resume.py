"""A resumed run ends where the undisturbed one does, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from resuming import Augmented, Everything
from torch.utils.data import DataLoader, RandomSampler
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
