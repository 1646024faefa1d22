"""`shipline train`: every option of the Trainer, Lightning's flags, links, signals."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning  # noqa: F401 -- it changes the environment, but once
import yaml
from command_line import TINY, TRAIN, UP, Run

from shipline.checkpoint import open_checkpoint
from shipline.commands.export import named_by, trusted_config
from shipline.commands.train import instantiate, train_parser
from shipline.config import parse, read_sources
from shipline.train.settings import Settings

ABLE = """
import torch
import tiny
from shipline.train.precision import Precision

class Able(tiny.Tiny):
    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == 3:
            print("ready", flush=True)

    def training_step(self, batch, batch_idx):
        return self(batch[0] + 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Headed(Able):
    def __init__(self, head: torch.nn.Module):
        super().__init__()
        self.linear = head

class Own(Precision):
    def __init__(self):
        super().__init__("own", torch.device("cpu"))
"""


@pytest.fixture
def tiny(here: Path) -> Path:
    """A working directory with a module that can be trained, its data, and a file that names them."""
    (here / "tiny.py").write_text(TINY)
    (here / "able.py").write_text(ABLE)
    (here / "train.yaml").write_text(TRAIN.replace("tiny.Tiny", "able.Able"))
    return here


# ---- every option ----------------------------------------------------------------------------------------------------

# option of the Trainer -> what is written on the command line, or in YAML; what the Trainer is given
OPTIONS: dict[str, list[tuple[str, Any]]] = {
    "accelerator": [("cpu", "cpu"), ("auto", "auto")],
    "strategy": [("ddp", "ddp"), ("auto", "auto"), ("shipline.train.strategies.Strategy", "a Strategy")],
    "devices": [("2", 2), ("auto", "auto"), ("[0]", [0])],
    "num_nodes": [("2", 2)],
    "workers": [("2", 2), ("null", None)],
    "precision": [("bf16-mixed", "bf16-mixed"), ("16", 16)],
    "logger": [("true", True), ("false", False), ("csv", "csv"), ("CSVLogger", "a CSVLogger"), ("[csv]", ["csv"])],
    "callbacks": [
        ("{class_path: EarlyStopping, init_args: {monitor: x}}", "a EarlyStopping"),
        ("ModelCheckpoint", "a ModelCheckpoint"), ("[ModelSummary, Timer]", ["a ModelSummary", "a Timer"]),
        ("RichModelSummary", "RichModelSummary"), ("[RichModelSummary, Timer]", ["RichModelSummary", "a Timer"]),
    ],
    "fast_dev_run": [("true", True), ("3", 3)],
    "max_epochs": [("3", 3), ("-1", -1)],
    "min_epochs": [("2", 2)],
    "max_steps": [("7", 7)],
    "min_steps": [("5", 5)],
    "max_time": [("00:12:00:00", "00:12:00:00"), ("{hours: 2}", {"hours": 2})],
    "limit_train_batches": [("1", 1), ("1.0", 1.0), ("0.5", 0.5)],
    "limit_val_batches": [("0", 0)],
    "limit_test_batches": [("0.25", 0.25)],
    "limit_predict_batches": [("4", 4)],
    "overfit_batches": [("2", 2), ("0.1", 0.1)],
    "val_check_interval": [
        ("0.25", 0.25), ("100", 100), ("00:00:10:00", "00:00:10:00"), ("{minutes: 3}", {"minutes": 3}),
    ],
    "check_val_every_n_epoch": [("2", 2)],
    "num_sanity_val_steps": [("-1", -1)],
    "log_every_n_steps": [("10", 10)],
    "enable_checkpointing": [("false", False)],
    "enable_progress_bar": [("false", False)],
    "enable_model_summary": [("false", False)],
    "accumulate_grad_batches": [("4", 4)],
    "gradient_clip_val": [("0.5", 0.5)],
    "gradient_clip_algorithm": [("value", "value")],
    "nonfinite_loss": [("skip", "skip")],
    "deterministic": [("true", True), ("warn", "warn")],
    "benchmark": [("true", True)],
    "inference_mode": [("false", False)],
    "use_distributed_sampler": [("false", False)],
    "profiler": [("simple", "simple"), ("SimpleProfiler", "a SimpleProfiler")],
    "detect_anomaly": [("true", True)],
    "barebones": [("true", True)],
    "plugins": [("able.Own", "a Own")],
    "sync_batchnorm": [("true", True)],
    "reload_dataloaders_every_n_epochs": [("2", 2)],
    "default_root_dir": [("s3://bucket/runs", "s3://bucket/runs")],
    "name": [("digits", "digits")],
    "compile": [("true", True), ("{mode: max-autotune}", {"mode": "max-autotune"})],
    "enable_autolog_hparams": [("false", False)],
    "step_timeout": [("30.5", 30.5), ("00:00:05:00", "00:00:05:00"), ("{minutes: 3}", {"minutes": 3})],
    "cluster": [("{placement: SPREAD}", "a RayCluster")],
}  # fmt: skip


def test_every_option_of_the_trainer_is_tried() -> None:
    assert set(OPTIONS) == set(inspect.signature(Settings.__init__).parameters) - {"self"}


def kinds(given: Any) -> Any:
    """The names of the classes of objects, in place of them."""
    if isinstance(given, list):
        return [kinds(item) for item in given]
    return given if type(given).__module__ == "builtins" else f"a {type(given).__name__}"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_the_trainer_is_one_of_the_command_line_and_a_key_of_the_file(name: str) -> None:
    for text, want in OPTIONS[name]:
        Path("more.yaml").write_text(f"trainer: {{{name}: {text}}}")
        for options in (["--config", "more.yaml"], [f"--trainer.{name}", text], [f"--trainer.{name}={text}"]):
            sources = read_sources(options, "train.yaml")
            parser = train_parser("train", "", sources)
            settings = parse(parser, sources)
            given = kinds(parser.instantiate(settings).trainer.given[name])
            assert given == want
            assert type(given) is type(want)


# ---- Lightning's flags -----------------------------------------------------------------------------------------------

LIGHTNING = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

class Net(pl.LightningModule):
    def __init__(self, width: int = 4, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 2)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.hparams.lr)

class Rows(pl.LightningDataModule):
    def __init__(self, rows: int = 8):
        super().__init__()
        self.rows = rows

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.ones(self.rows, 4)), 4)
"""


def test_lightnings_own_classes_are_trained_by_lightnings_flags(run: Run, here: Path) -> None:
    (here / "net.py").write_text(LIGHTNING)
    flags = ["--data", "net.Rows", "--data.rows", "12", "--trainer.max_epochs", "2", "--seed_everything", "1"]
    quiet = ["--trainer.accelerator", "cpu", "--trainer.enable_model_summary", "false"]
    outcome = run("train", "--module", "net.Net", "--module.lr", "0.5", *flags, *quiet)
    assert outcome.code == 0, outcome.err
    checkpoint = open_checkpoint("runs/net/last")
    assert (checkpoint.manifest.global_step, checkpoint.manifest.hyper_parameters["lr"]) == (6, 0.5)
    assert (
        run("train", "--module", "net.Net", *flags[:2], *quiet, "--ckpt_path", "last", "--trainer.max_epochs", "3").code
        == 0
    )
    assert open_checkpoint("runs/net/last").manifest.epoch == 2


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "tiny.Tiny", "--data", "tiny.Data"], "unknown option --model. Did you mean --module?"),
        (["train.yaml", "--model.width", "3"], "unknown option --model.width. Did you mean --module.width?"),
        (["train.yaml", "--max_epochs=3"], "unknown option --max_epochs. Did you mean --trainer.max_epochs?"),
        (["train.yaml", "--ckpt", "last"], "unknown option --ckpt. Did you mean --ckpt_path?"),
        (["train.yaml", "--trainer.gpus", "1"], "unknown option --trainer.gpus."),
    ],
)
def test_the_flag_that_was_meant_is_named(run: Run, options: list[str], message: str) -> None:
    run("train", *options).refused(2, message)


# ---- settings that are read again ------------------------------------------------------------------------------------


def test_what_print_config_prints_trains_the_same(run: Run, tiny: Path) -> None:
    printed = run("train", "train.yaml", "--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "loss",
        "--trainer.max_time", "{hours: 1}", "--seed_everything", "5", "--print_config")  # fmt: skip
    assert (printed.code, printed.err) == (0, "")
    (tiny / "printed.yaml").write_text(printed.out)
    assert run("train", "printed.yaml", "--print_config") == printed
    assert run("train", "printed.yaml", "--trainer.logger", "false", "--trainer.callbacks", "[]").code == 0
    kept = yaml.safe_load(Path("runs/able/version_0/config.yaml").read_text())
    assert kept["trainer"]["max_time"] == {"hours": 1}
    assert kept["import_path"] == [str(tiny)]
    assert run("train", "runs/able/version_0/config.yaml").code == 0
    first, second = (open_checkpoint(f"runs/able/version_{n}/checkpoints/epoch=0-step=2") for n in (0, 1))
    assert first.manifest.files["weights.safetensors"].sha256 == second.manifest.files["weights.safetensors"].sha256


def test_an_environment_variable_is_an_option_of_a_training(
    run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIPLINE_CONFIG", "train.yaml")
    monkeypatch.setenv("SHIPLINE_TRAINER__MAX_EPOCHS", "3")
    monkeypatch.setenv("SHIPLINE_MODULE__LR", "0.5")
    printed = yaml.safe_load(run("train", "--print_config").out)
    assert (printed["trainer"]["max_epochs"], printed["module"]["init_args"]["lr"]) == (3, 0.5)
    assert yaml.safe_load(run("train", "--print_config", "--trainer.max_epochs", "4").out)["trainer"]["max_epochs"] == 4
    (tiny / "up.yaml").write_text(UP)
    run("up", "up.yaml").refused(2, "SHIPLINE_MODULE__LR names no option. Did you mean SHIPLINE_TRAIN__MODULE__LR?")
    monkeypatch.delenv("SHIPLINE_MODULE__LR")
    said = "SHIPLINE_TRAINER__MAX_EPOCHS names no option. Did you mean SHIPLINE_TRAIN__TRAINER__MAX_EPOCHS?"
    run("up", "up.yaml").refused(2, said)
    monkeypatch.setenv("SHIPLINE_TRAINER__MAX_EPOCH", "3")
    run("train").refused(2, "unknown variable SHIPLINE_TRAINER__MAX_EPOCH. Did you mean SHIPLINE_TRAINER__MAX_EPOCHS?")


def test_what_is_to_be_exported_next_is_there(run: Run, tiny: Path) -> None:
    """Also where checkpoints have a directory of their own, whose names the run does not know."""
    own = "[{class_path: ModelCheckpoint, init_args: {dirpath: mine}}]"
    for options, named in (((), "runs/able/best"), (("--trainer.callbacks", own), "mine/epoch=0-step=2")):
        [line] = [line for line in run("train", "train.yaml", *options).out.splitlines() if line.startswith("Next: ")]
        assert line == f"Next: shipline export {tiny}/{named} --to models/NAME"
        open_checkpoint(named)


@pytest.mark.usefixtures("tiny")
def test_an_export_makes_the_module_as_its_training_did(run: Run) -> None:
    """An argument that no checkpoint can keep is made anew from the settings."""
    head = ["--module.head", "torch.nn.Linear", "--module.head.in_features", "4", "--module.head.out_features", "3"]
    assert run("train", "train.yaml", "--module", "able.Headed", *head, "--data.rows", "12").code == 0
    checkpoint = open_checkpoint("runs/headed/last")
    assert checkpoint.manifest.not_rebuildable == ["head"]
    make, data = named_by(trusted_config(checkpoint), checkpoint)
    module = make()
    assert (type(module).__name__, module.linear.out_features) == ("Headed", 3)
    assert data.rows == 12  # type: ignore[attr-defined]


# ---- links -----------------------------------------------------------------------------------------------------------

LINK = TRAIN.replace("  init_args: {width: 4}\n", "") + "link: {module.width: data.width}\n"


@pytest.mark.usefixtures("tiny")
def test_an_argument_of_the_module_is_what_the_data_says() -> None:
    Path("tiny.py").write_text(TINY.replace("self.rows = rows", "self.rows, self.width = rows, rows - 1"))
    Path("link.yaml").write_text(LINK)
    sources = read_sources(["--data.rows", "7"], "link.yaml")
    parser = train_parser("train", "", sources)
    assert instantiate(parser, parse(parser, sources), None).module.hparams["width"] == 6


@pytest.mark.parametrize(
    ("yaml", "options", "message"),
    [
        (LINK, [], "link: Data has no 'width'."),
        (LINK.replace("data.width", "data.row"), [], "link: Data has no 'row'. Did you mean 'rows'?"),
        (LINK.replace("module.width", "module.widht"), [],
         "link: tiny.Tiny has no argument 'widht'. Did you mean 'width'?"),
        (LINK.replace("data.width", "width"), [], "link: 'width' in {'module.width': 'width'} links nothing: give an"),
        (TRAIN, ["--link", "{module.width: data.width}"], "link stands in a file only"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_link_is_named(run: Run, tiny: Path, yaml: str, options: list[str], message: str) -> None:
    (tiny / "link.yaml").write_text(yaml)
    run("train", "link.yaml", *options).refused(2, message)


# ---- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_is_told_to_end_saves_and_says_how_to_go_on(run: Run, number: int, code: int) -> None:
    """As a process of its own, which a terminal or a cluster tells."""
    options = ["train.yaml", "--trainer.enable_progress_bar", "false"]
    command = [sys.executable, "-W", "error", "-m", "shipline", "train", *options, "--trainer.max_epochs", "-1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "ready\n":
            break
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    [last] = [line for line in said.splitlines() if line.startswith("Told to end; saved as ")]
    saved = last.removeprefix("Told to end; saved as ").partition(". To go on")[0]
    assert last.endswith("To go on, repeat the command with --ckpt_path last")
    stopped = open_checkpoint(saved).manifest.global_step
    assert stopped >= 3
    outcome = run("train", *options, "--ckpt_path", "last", "--trainer.max_epochs", "-1",
        "--trainer.max_steps", str(stopped + 1))  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert open_checkpoint("runs/able/last").manifest.global_step == stopped + 1
