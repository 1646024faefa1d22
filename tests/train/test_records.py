"""What a run writes down besides metrics and checkpoints: run.json, environment, code, arguments, curves."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from training import Mlp, Scripted, new_trainer, numbers, on_hook, train_loader, val_loader

import shipline as sl
from shipline import repository
from shipline.errors import ConfigError, StoreError
from shipline.runs import RunRecord, open_run
from shipline.store import Store, open_store
from shipline.store.store import LocalStore
from shipline.train.profilers import SimpleProfiler
from shipline.train.records import Background, Code
from shipline.train.records.environment import command_line, describe_environment
from shipline.train.records.plots import HTML_FILE, PNG_FILE, write_plots
from shipline.train.records.plots.curves import make_panels, quantity, thinned
from shipline.train.records.plots.scene import Axis

SECRET = "hunter2"


def record_of(run: sl.Run) -> RunRecord:
    return open_run(str(run.url)).record


def record_at(path: Path) -> RunRecord:
    return open_run(str(path)).record


# ---- run.json --------------------------------------------------------------------------------------------------------


def test_a_run_that_finishes(url: str) -> None:
    began = datetime.now(UTC)
    keep = sl.ModelCheckpoint(monitor="val_acc", mode="max")
    run = new_trainer(url, max_epochs=2, callbacks=[keep]).fit(Mlp(), train_loader(64), val_loader(32))
    record = record_of(run)
    assert (record.state, record.error, record.module) == ("finished", None, "training.Mlp")
    assert (record.epochs, record.steps) == (2, 4)
    assert record.metrics == pytest.approx(run.metrics)
    assert (record.monitor, record.mode, record.best) == ("val_acc", "max", pytest.approx(float(keep.best_model_score)))
    assert record.started_at is not None
    assert record.ended_at is not None
    assert began <= record.started_at <= record.ended_at
    assert 0 < record.seconds <= (record.ended_at - record.started_at).total_seconds()
    assert (record.host, record.pid) == (socket.gethostname(), os.getpid())
    assert record.lineage["data_fingerprint"] == run.checkpoint.manifest.lineage.data_fingerprint
    assert record.lineage["packages"]["torch"] == torch.__version__


def test_while_it_runs_it_says_so(tmp_path: Path) -> None:
    seen = []

    def look(trainer: sl.Trainer, *_: Any) -> None:
        trainer.records._writing.result()
        seen.append(open_run(str(trainer.log_dir)))

    new_trainer(tmp_path, max_epochs=1, callbacks=[on_hook("on_train_end", look)]).fit(Mlp(), train_loader(64))
    [found] = seen
    assert found.state == "running"
    assert found.seconds is not None
    assert found.record.lineage["packages"]["torch"] == torch.__version__


def test_a_run_that_fails_and_is_resumed(tmp_path: Path) -> None:
    scores = [1.0, 0.5]
    with pytest.raises(IndexError):
        new_trainer(tmp_path, max_epochs=3).fit(Scripted(scores), numbers(2), numbers(1))
    path = tmp_path / "scripted" / "version_0"
    failed = record_at(path)
    assert (failed.state, failed.error, failed.epochs, failed.resumed_at) == (
        "failed", "IndexError: list index out of range", 2, None,
    )  # fmt: skip
    (path / "environment.json").unlink()
    run = new_trainer(tmp_path, max_epochs=3).fit(Scripted([*scores, 0.25]), numbers(2), numbers(1), ckpt_path="last")
    resumed = record_of(run)
    assert run.url == str(path)
    assert (resumed.state, resumed.error, resumed.epochs, resumed.started_at) == (
        "finished", None, 3, failed.started_at,
    )  # fmt: skip
    assert resumed.resumed_at is not None
    assert failed.ended_at is not None
    assert failed.ended_at < resumed.resumed_at
    assert resumed.seconds > failed.seconds
    assert yaml.safe_load((path / "hparams.yaml").read_text())["scores"] == [*scores, 0.25]
    assert (path / "environment.json").exists()


def test_a_run_that_is_told_to_end_is_interrupted(tmp_path: Path) -> None:
    kill = on_hook("on_train_batch_end", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        new_trainer(tmp_path, max_epochs=1, callbacks=[kill]).fit(Mlp(), train_loader(64))
    assert record_at(tmp_path / "mlp" / "version_0").state == "interrupted"


def test_a_run_that_fails_before_it_begins(tmp_path: Path) -> None:
    class Broken(SimpleProfiler):
        def setup(self, *_: Any) -> None:
            raise ConfigError(f"There is no s3://me:{SECRET}@bucket/x.")

    with pytest.raises(ConfigError):
        new_trainer(tmp_path, max_epochs=1, profiler=Broken()).fit(Mlp(), train_loader(64))
    record = record_at(tmp_path / "mlp" / "version_0")
    assert (record.state, record.error) == ("failed", "ConfigError: There is no s3://***@bucket/x.")


def test_a_metric_that_is_not_finite_is_null(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Scripted([float("nan")]), numbers(1), numbers(1))
    assert json.loads(open_store(str(run.url)).read("run.json"))["metrics"] == {"score": None}


def test_records_that_cannot_be_written_do_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = LocalStore.write

    def refuse(self: LocalStore, key: str, data: Any) -> None:
        if key in ("environment.json", "run.json"):
            raise StoreError(f"Cannot write {self}/{key}: the disk is full.")
        write(self, key, data)

    monkeypatch.setattr(LocalStore, "write", refuse)
    run = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(64))
    assert run.checkpoint.manifest.global_step == 2
    said = [each.getMessage() for each in caplog.records if "records of the run" in each.getMessage()]
    assert [text.split(": ", 1)[0] for text in said] == ["The records of the run are not complete"] * 2
    assert record_of(run).state == "running"


def test_a_run_json_that_was_damaged_meanwhile_is_written_anew(tmp_path: Path) -> None:
    def damage(trainer: sl.Trainer, *_: Any) -> None:
        trainer.records._writing.result()
        trainer.records._writing = Background.known(None)
        trainer.run_directory.store.write("run.json", b"{")

    run = new_trainer(tmp_path, max_epochs=1, callbacks=[on_hook("on_train_end", damage)]).fit(Mlp(), train_loader(64))
    assert (record_of(run).state, record_of(run).steps) == ("finished", 2)


# ---- what it ran on --------------------------------------------------------------------------------------------------


def test_the_environment_and_nobodys_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{SECRET}@server")
    monkeypatch.setenv("SHIPLINE_API_TOKEN", SECRET)
    monkeypatch.setenv("MY_PASSWORD", SECRET)
    monkeypatch.setattr(sys, "argv", ["train.py", "--api_key", SECRET, f"--root=s3://me:{SECRET}@bucket"])
    found = describe_environment(torch.device("cpu"))
    assert SECRET not in json.dumps(found)
    assert found["environment"]["OMP_NUM_THREADS"] == "2"
    assert found["environment"]["MLFLOW_TRACKING_URI"] == "https://***@server"
    assert "MY_PASSWORD" not in found["environment"]
    assert found["command"] == ["train.py", "--api_key", "***", "--root=s3://***@bucket"]
    assert found["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["python"] == sys.version.split()[0]
    assert found["accelerator"] == {"device": "cpu", "torch": torch.__version__}
    assert found["cpu"]["count"] == os.cpu_count()


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--password=x", "y"], ["--password=***", "y"]),
        (["--token", "x", "y"], ["--token", "***", "y"]),
        (["--token", "--lr", "1"], ["--token", "--lr", "1"]),
        (["tokenize", "--tokens", "3"], ["tokenize", "--tokens", "3"]),
    ],
)
def test_a_command_line_without_credentials(given: list[str], shown: list[str]) -> None:
    assert command_line(given) == shown


def test_the_state_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = repository.Repository(tmp_path, "f" * 40, "trunk", (".M train.py",))
    monkeypatch.setattr(repository.Repository, "diff", lambda self, limit: f"+lr = {limit}\n")
    monkeypatch.setattr("shipline.train.records.code.look", lambda *_: found)
    run = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(64))
    store = open_store(str(run.url))
    assert json.loads(store.read("git.json")) == {
        "commit": "f" * 40, "branch": "trunk", "dirty": True, "changes": [".M train.py"],
    }  # fmt: skip
    assert store.read("git.diff") == b"+lr = 1048576\n"
    assert run.checkpoint.manifest.lineage.git_commit == "f" * 40
    assert record_of(run).lineage["git_dirty"] is True


def test_code_whose_state_cannot_be_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("shipline.train.records.code.look", fail)
    run = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(64))
    assert "No space left on device" in caplog.text
    assert run.checkpoint.manifest.lineage.git_commit is None
    assert "git.json" not in open_store(str(run.url)).list()
    assert Code().files() == {}


# ---- curves ----------------------------------------------------------------------------------------------------------


def test_curves_of_a_run(url: str) -> None:
    run = new_trainer(url, max_epochs=3, log_every_n_steps=1).fit(Mlp(), train_loader(96), val_loader(32))
    store = open_store(str(run.url))
    picture = Image.open(io.BytesIO(store.read(PNG_FILE)))
    assert (picture.format, picture.size) == ("PNG", (1440, 450))
    colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    assert {(31, 111, 180), (224, 123, 26)} <= colors  # the two curves of the loss
    page = store.read(HTML_FILE).decode()
    svgs = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]  # noqa: S314 -- our own
    assert [svg.findtext("title") for svg in svgs] == ["val_acc", "train_loss, val_loss"]
    curves = [
        line.get("points", "").split() for line in svgs[1].findall("polyline") if line.get("stroke-width") == "1.6"
    ]
    assert [len(points) for points in curves] == [9, 3]
    assert "finished" in page
    assert "http" not in re.sub(r"https?://www\.w3\.org\S*", "", page)  # it loads nothing


def test_no_curves_where_there_is_nothing_to_draw(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Scripted([0.5]), numbers(1), numbers(1))
    assert "plots" not in open_store(str(run.url)).list()
    run = new_trainer(tmp_path, max_epochs=2, logger=False).fit(Scripted([0.5, 1.0]), numbers(1), numbers(1))
    assert "plots" not in open_store(str(run.url)).list()


def written(store: Store, rows: list[str]) -> str:
    store.write("metrics.csv", "\n".join(rows).encode())
    write_plots(store, RunRecord(module="<b>&", error="<script>", state="failed"))
    return store.read(HTML_FILE).decode()


@pytest.mark.parametrize(
    "values",
    [
        ["nan", "inf"], ["1", "nan", "2", "-inf", "3"], ["5", "5", "5"], ["0", "0"], ["1e308", "-1e308"],
        ["5e-324", "0"], ["1.7e308", "1.7e308"], ["1e-300", "2e-300"],
    ],
)  # fmt: skip
def test_values_that_are_hard_to_draw(tmp_path: Path, values: list[str]) -> None:
    page = written(open_store(str(tmp_path)), ["step,a", *(f"{step},{value}" for step, value in enumerate(values))])
    assert "nan" not in page
    [svg] = [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]  # noqa: S314 -- our own
    finite = [value for value in values if value not in ("nan", "inf", "-inf")]
    shapes = [line for line in svg.iter() if line.get("stroke-width") == "1.6" or line.tag == "circle"]
    assert bool(shapes) == bool(finite)
    xs = [
        float(n) for line in shapes for n in re.findall(r"([-\d.]+),", line.get("points", "")) or [line.get("cx", "")]
    ]
    assert all(62 <= x <= 466 for x in xs)
    Image.open(io.BytesIO(open_store(str(tmp_path)).read(PNG_FILE))).load()


def test_names_and_errors_are_text_in_the_page(tmp_path: Path) -> None:
    page = written(open_store(str(tmp_path)), ["step,<img src=x>", "1,1", "2,2"])
    assert "<img" not in page
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;img src=x&gt;" in page


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (["train_loss", "val_loss", "test/loss", "loss_epoch", "loss", "val/loss/dataloader_idx_0"], "loss"),
        (["accuracy.val", "train accuracy_step", "validation-accuracy"], "accuracy"),
        (["val", "val_"], None),
        (["lr-SGD"], "lr-SGD"),
    ],
)
def test_what_is_drawn_together(names: list[str], title: str | None) -> None:
    if title is None:
        assert [quantity(name) for name in names] == names
        return
    [panel] = make_panels({name: [(0, 1.0)] for name in [*names, "epoch"]})
    assert panel.title == title
    assert {curve.name for curve in panel.curves} == set(names)


def test_of_many_points_no_spike_is_lost() -> None:
    points = [(step, 0.5 if step != 777 else 9.0) for step in range(100_000)]
    points[50_000] = (50_000, float("nan"))
    few = thinned(points)
    assert len(few) <= 600
    assert few == sorted(few)
    assert (777, 9.0) in few
    assert (few[0][0], len(thinned(points[:600]))) == (0, 600)


def test_ticks_are_round_and_within() -> None:
    assert Axis(0.0, 10.0, 0, 1).ticks() == [0, 2, 4, 6, 8, 10]
    assert Axis(0.13, 0.92, 0, 1).ticks() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert Axis(-1e308, 1e308, 0, 1).ticks() == pytest.approx([-1e308, -5e307, 0, 5e307, 1e308])
