"""Training on, for an export that changed a module: short, the same each time, and without a trace."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_modules import boring_datamodule
from training import Digits, Mlp, same_weights

from shipline.train.finetune import finetune
from shipline.train.seed import rng_state


def module() -> Mlp:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        made = Mlp(dropout=0.2)
    made.eval()
    return made


def test_it_trains_in_training_mode_and_ends_in_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    trained, modes = module(), []
    step = trained.training_step
    trained.training_step = lambda *a: modes.append(trained.layers.training) or step(*a)  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        finetune(trained, Digits(), 1)
    assert modes
    assert all(modes)
    assert not any(part.training for part in trained.modules())
    assert caplog.records == []


def test_it_is_the_same_each_time_and_leaves_the_generators() -> None:
    first, second = module(), module()
    finetune(first, Digits(), 1)
    torch.rand(5)
    before = rng_state()
    finetune(second, Digits(), 1)
    assert rng_state() == before
    same_weights(first, second)


def test_it_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    finetune(module(), Digits(), 1, "val_loss", "min")
    assert list(tmp_path.rglob("*")) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("mode", "best"), [("max", 1), ("min", 0)])
def test_the_best_epoch_stays(mode: str, best: int) -> None:
    trained, seen = module(), []

    def validation_epoch_end() -> None:
        seen.append(copy.deepcopy(trained.state_dict()))
        trained.log("good", [0.2, 0.9, 0.4][len(seen) - 1])

    trained.on_validation_epoch_end = validation_epoch_end  # type: ignore[method-assign]
    finetune(trained, Digits(), 3, "good", mode)
    assert len(seen) == 3
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, seen[best][name]), name


def test_without_that_metric_the_last_epoch_stays() -> None:
    plain, monitored = module(), module()
    finetune(plain, Digits(), 2)
    finetune(monitored, Digits(), 2, "nobody_logs_this", "max")
    same_weights(plain, monitored)


def test_a_module_of_lightnings_is_trained_on() -> None:
    made, rest = boring_datamodule()
    before = copy.deepcopy(made.state_dict())
    copied: Any = copy.deepcopy(made)
    finetune(copied, rest["datamodule"], 1)
    assert any(not torch.equal(before[name], tensor) for name, tensor in copied.state_dict().items())
    copy.deepcopy(copied)
