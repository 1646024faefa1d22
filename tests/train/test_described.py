"""The settings that a run from Python keeps: what is in its config.yaml, and that it can be trained from it again."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from training import Digits, Mlp, new_trainer, on_hook, same_weights, train_loader

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.commands import main
from shipline.store import open_store
from shipline.train import EarlyStopping, ModelCheckpoint
from shipline.train.profilers import SimpleProfiler

SUPPORT = str(Path(__file__).parents[1] / "support")


def kept(run: sl.train.Run) -> tuple[dict[str, Any], list[str]]:
    """The settings of a run, and the comments on what is missing."""
    text = open_store(str(run.url)).read("config.yaml").decode()
    return yaml.safe_load(text), [line.removeprefix("# ") for line in text.splitlines() if line.startswith("#")]


def test_a_run_from_python_is_trained_again_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sl.seed_everything(3)
    module = Mlp(8, lr=0.2)
    trainer = new_trainer(
        tmp_path, name="first", max_epochs=2, max_time=timedelta(days=2, hours=3), gradient_clip_val=np.float64(0.5),
        profiler="simple", logger="csv", limit_train_batches=2,
        callbacks=[ModelCheckpoint(monitor="val_acc", mode="max"), EarlyStopping("val_loss", patience=3)],
    )  # fmt: skip
    first = trainer.fit(module, datamodule=Digits(96))
    settings, missing = kept(first)
    assert missing == []
    assert settings == {
        "seed_everything": 3,
        "module": {"class_path": "training.Mlp", "init_args": {"hidden": 8, "dropout": 0.0, "lr": 0.2}},
        "data": {"class_path": "training.Digits", "init_args": {"count": 96, "transform": None}},
        "trainer": {
            "accelerator": "cpu", "default_root_dir": str(tmp_path), "enable_progress_bar": False,
            "enable_model_summary": False, "name": "first", "max_epochs": 2, "max_time": {"seconds": 183600.0},
            "gradient_clip_val": 0.5, "profiler": "simple", "logger": "csv", "limit_train_batches": 2,
            "callbacks": [
                {"class_path": "shipline.train.callbacks.model_checkpoint.ModelCheckpoint",
                 "init_args": {"monitor": "val_acc", "mode": "max"}},
                {"class_path": "shipline.train.callbacks.early_stopping.EarlyStopping",
                 "init_args": {"monitor": "val_loss", "patience": 3}},
            ],
        },
        "import_path": [SUPPORT],
    }  # fmt: skip
    del settings["import_path"]  # where things lie on this machine
    settings["trainer"]["default_root_dir"] = f".../{tmp_path.name}"
    assert open_checkpoint(str(first.last_url)).manifest.lineage.config == settings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = main(["train", f"{first.url}/config.yaml", "--trainer.name", "second"])
    assert code == 0, capsys.readouterr().err
    again = Mlp(8)
    sl.train.checkpoints.load_module(again, open_checkpoint(str(tmp_path / "second" / "last")))
    assert same_weights(again, module)
    whole = kept(replace(first, url=str(tmp_path / "second" / "version_0")))[0]
    assert whole["trainer"]["max_time"] == {"seconds": 183600.0}
    assert whole["trainer"]["callbacks"][0]["init_args"]["monitor"] == "val_acc"


class Unkept:
    """An argument that nobody can read back."""

    def __init__(self, scale: float) -> None:
        self.scale = scale


def test_what_is_no_plain_data_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    seen = on_hook("on_train_start", lambda *_arguments: None)
    trainer = new_trainer(
        tmp_path, max_epochs=1, callbacks=[seen, ModelCheckpoint(save_top_k=2)], profiler=SimpleProfiler()
    )
    settings, missing = kept(trainer.fit(Mlp(), datamodule=Digits(32, transform=Unkept(2.0))))
    assert settings["module"]["class_path"] == "training.Mlp"
    assert "data" not in settings
    assert [each["init_args"] for each in settings["trainer"]["callbacks"]] == [{"save_top_k": 2}]
    assert settings["trainer"]["profiler"]["class_path"].endswith(".SimpleProfiler")
    assert missing == [
        "not kept: data: a training.Digits, whose argument transform is no plain data",
        "not kept: trainer.callbacks: a training.OnHook, which cannot be imported elsewhere",
    ]


@pytest.mark.parametrize("value", [torch.zeros(2), torch.float32, np.zeros(2), torch.device("cpu"), {1, 2}, object])
def test_what_does_not_say_how_it_was_made_is_no_plain_data(tmp_path: Path, value: Any) -> None:
    """A tensor that is made again without its numbers is another one."""
    settings, missing = kept(new_trainer(tmp_path, max_steps=1).fit(Mlp(), datamodule=Digits(32, transform=value)))
    if value is object:
        assert settings["data"]["init_args"]["transform"] == "builtins.object"
    else:
        assert "data" not in settings
        assert missing == ["not kept: data: a training.Digits, whose argument transform is no plain data"]


def test_loaders_have_no_settings_and_credentials_are_left_out(tmp_path: Path) -> None:
    trainer = new_trainer("memory://key:hunter2@host/runs", max_steps=1)
    run = trainer.fit(Mlp(), train_loader(32))
    settings, missing = kept(replace(run, url="memory://key:hunter2@host/runs/mlp/version_0"))
    assert len(missing) == 1
    assert missing[0].startswith("not kept: data: a shipline.train.data.module.Loaders")
    assert "hunter2" not in str(settings)
    assert settings["trainer"]["max_steps"] == 1


def test_a_plain_loop_keeps_the_settings_of_its_trainer(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, name="plain", log_every_n_steps=5).run(lambda loop: loop.log({"loss": 1.0}))
    settings, missing = kept(run)
    assert missing == []
    assert settings["trainer"]["log_every_n_steps"] == 5
    assert "module" not in settings
