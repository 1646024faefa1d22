"""A script of Lightning's users runs with the changed import only, and finds what it finds there."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from helpers import ROOT
from pytorch_lightning.utilities import grad_norm as their_grad_norm
from training import new_trainer

import shipline.train
from shipline.errors import ConfigError
from shipline.train.utilities import grad_norm, rank_zero_info, rank_zero_only, rank_zero_warn

SCRIPT = Path(__file__).parent / "scripts" / "lightning_script.py"


def run(text: str, directory: Path) -> dict[str, Any]:
    """What the script prints last."""
    directory.mkdir()
    script = directory / "script.py"
    script.write_text(text)
    command = [sys.executable, "-W", "ignore", str(script), "--root", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_script_runs_with_the_changed_import_only(tmp_path: Path) -> None:
    text = SCRIPT.read_text()
    theirs = run(text, tmp_path / "lightning")
    ours = run(text.replace("pytorch_lightning", "shipline.train"), tmp_path / "shipline")
    metrics, expected = ours.pop("metrics"), theirs.pop("metrics")
    version, their_version = ours.pop("version"), theirs.pop("version")
    assert ours == theirs
    assert metrics == pytest.approx(expected, rel=1e-6)  # ours are means in double precision
    assert version == their_version == 0
    assert len(ours["losses"]) == 52


def named_by_the_page() -> set[str]:
    """All words that it has as code."""
    code = re.findall(r"`([^`]*)`", (ROOT / "docs" / "from_lightning.md").read_text())
    return {word for text in code for word in re.findall(r"\w+", text)}


def public(item: Any) -> set[str]:
    return {name for name in getattr(item, "__all__", dir(item)) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["", "callbacks", "loggers", "profilers", "strategies", "accelerators", "utilities"])
def test_every_name_of_lightnings_is_here_or_the_page_says_why_not(name: str) -> None:
    page = named_by_the_page()
    theirs = importlib.import_module(f"pytorch_lightning.{name}".rstrip("."))
    ours = importlib.import_module(f"shipline.train.{name}".rstrip("."))
    assert {n for n in public(theirs) - public(ours) if not hasattr(ours, n) and n not in page} == set()


@pytest.mark.parametrize("name", ["LightningModule", "LightningDataModule", "Callback", "Trainer"])
def test_every_method_of_lightnings_is_here_or_the_page_says_why_not(name: str, tmp_path: Path) -> None:
    page = named_by_the_page()
    theirs, ours = getattr(pytorch_lightning, name), getattr(shipline.train, name)
    known = public(ours) | (set(vars(new_trainer(tmp_path))) if name == "Trainer" else set())
    missing = {n for n in public(theirs) - known if n not in page and not n.startswith("CHECKPOINT_HYPER_PARAMS")}
    if name == "LightningModule":  # looked for where they are overridden
        missing -= {"train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"}
    assert missing == set()


def test_every_argument_of_lightnings_trainer_is_here_or_the_page_says_why_not() -> None:
    page = named_by_the_page()
    for method in ("__init__", "fit", "validate", "test", "predict", "save_checkpoint"):
        theirs, ours = (
            set(inspect.signature(getattr(trainer, method)).parameters)
            for trainer in (pytorch_lightning.Trainer, shipline.train.Trainer)
        )
        assert {n for n in theirs - ours if n not in page} == set()


def test_norms_of_gradients_are_lightnings() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    module(torch.ones(5, 3)).square().sum().backward()
    for norm_type in (1, 2.0, "inf"):
        norms = {name: float(norm) for name, norm in their_grad_norm(module, norm_type).items()}
        assert grad_norm(module, norm_type) == pytest.approx(norms, rel=1e-6)
    assert grad_norm(torch.nn.Linear(1, 1), 2) == {}
    with pytest.raises(ConfigError, match="norm_type=0"):
        grad_norm(module, 0)


def test_what_is_for_the_first_worker_only(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    calls = []
    monkeypatch.setenv("RANK", "1")
    record = rank_zero_only(calls.append, default="elsewhere")
    assert (record(1), rank_zero_only.rank) == ("elsewhere", 1)
    rank_zero_info("not said")
    monkeypatch.setenv("RANK", "0")
    assert record(2) is None
    with caplog.at_level("INFO", logger="shipline.train"):
        rank_zero_info("said %s", "once")
    assert (calls, caplog.messages) == ([2], ["said once"])
    with pytest.warns(UserWarning, match="of this"):
        rank_zero_warn("of this")
