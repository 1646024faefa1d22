"""`Trainer.run`: a plain PyTorch loop gets launch, store, checkpoints and resume without a Module."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import metric_rows, new_trainer, rows, same_weights

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError
from shipline.store import open_store
from shipline.train.plain import Loop

EPOCHS = 3


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))


class Train:
    """A loop that everybody writes; it saves every other batch, or at the end of epochs, and may fail at a step."""

    def __init__(self, fail_at: int | None = None, every: int | None = 2, kill: int | None = None) -> None:
        self.fail_at, self.every, self.kill = fail_at, every, kill
        self.seen: list[tuple[int, int]] = []

    def __call__(self, loop: Loop) -> Any:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        model, optimizer, schedule, loader, val = loop.prepare(
            model, optimizer, schedule, DataLoader(rows(0, 128), 32, shuffle=True), DataLoader(rows(1400, 1500), 50)
        )
        for epoch in loop.epochs(EPOCHS):
            for image, digit in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(image), digit)
                loss.backward()
                optimizer.step()
                loop.log({"loss": loss})
                self.seen.append((epoch, loop.global_step))
                if self.kill == loop.global_step:
                    os.kill(os.getpid(), signal.SIGTERM)
                if self.fail_at == loop.global_step:
                    raise RuntimeError("power cut")
                if self.every and loop.global_step % self.every == 0:
                    loop.save()
            schedule.step()
            loop.log({"acc": sum(float((model(x).argmax(1) == y).sum()) for x, y in val) / 100})
            if not self.every:
                loop.save()
        return model


def run(root: Path, train: Train, ckpt_path: str | None = None, name: str = "plain") -> sl.train.Run:
    sl.seed_everything(0 if ckpt_path is None else 99)
    return new_trainer(root, name=name).run(train, ckpt_path=ckpt_path)


def test_a_plain_loop_has_its_records_and_checkpoint(tmp_path: Path) -> None:
    train = Train()
    done = run(tmp_path, train)
    assert train.seen == [(step // 4, step + 1) for step in range(12)]
    assert [row["step"] for row in metric_rows(str(done.url))] == [str(step) for step in range(12)]
    assert set(done.metrics) == {"loss", "acc"}
    checkpoint = open_checkpoint(str(done.last_url))
    assert (checkpoint.manifest.epoch, checkpoint.manifest.global_step) == (2, 12)
    assert len(open_store(f"{done.url}/checkpoints").list()) == 1


@pytest.mark.parametrize(("fail_at", "every"), [(1, 2), (3, 2), (4, 2), (7, 1), (9, None)])
def test_a_loop_that_failed_goes_on_as_if_it_had_not(tmp_path: Path, fail_at: int, every: int | None) -> None:
    """From the middle of an epoch, or from the end of one."""
    whole = run(tmp_path, Train(every=every), name="whole")
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, Train(fail_at, every))
    resume = "last" if fail_at > (every or 4) else None
    again = Train(every=every)
    done = run(tmp_path, again, resume)
    assert same_weights(done.result, whole.result)
    assert metric_rows(str(done.url)) == metric_rows(str(whole.url))
    if every is None:
        assert again.seen[0] == (2, 9)


def test_a_loop_that_is_told_to_end_saves_first(tmp_path: Path) -> None:
    whole = run(tmp_path, Train(every=None), name="whole")
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, Train(every=None, kill=6))
    assert ended.value.code == 143
    again = Train(every=None)
    assert same_weights(run(tmp_path, again, "last").result, whole.result)
    assert again.seen[0] == (1, 7)


def test_other_objects_are_named(tmp_path: Path) -> None:
    run(tmp_path, Train())

    def other(loop: Loop) -> None:
        loop.prepare(nn.Linear(2, 2))

    with pytest.raises(ConfigError, match="was made with other objects than prepare was given"):
        new_trainer(tmp_path, name="plain").run(other, ckpt_path="last")


def test_what_cannot_be_prepared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prepare was given a int, which is no module, no loader"):
        new_trainer(tmp_path).run(lambda loop: loop.prepare(3))  # type: ignore[arg-type]


def test_several_modules_are_kept_each_under_its_number(tmp_path: Path) -> None:
    def two(loop: Loop) -> Any:
        first, second = loop.prepare(nn.Linear(2, 2), nn.Linear(2, 2))
        for _ in loop.epochs(1):
            loop.save()
        return first, second

    done = new_trainer(tmp_path).run(two)
    again = new_trainer(tmp_path).run(two, ckpt_path="last")
    assert all(same_weights(one, other) for one, other in zip(done.result, again.result, strict=True))
