"""`shipline runs` and `shipline runs compare`, on runs of real fits and on damaged ones, on every store."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from command_line import Run
from training import Mlp, new_trainer, train_loader, val_loader

import shipline as sl
from shipline.commands.runs import duration
from shipline.runs import RunRecord, best_of, better_mode, find_runs, parse_metrics
from shipline.store import open_store

SECRET = "hunter2"


def write(root: str, name: str, rows: str = "", **record: Any) -> None:
    """A run as one leaves it."""
    store = open_store(f"{root}/{name}")
    begun = {"state": "finished", "started_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "module": "x.Net"}
    store.write("run.json", RunRecord(**(begun | record)).model_dump_json().encode())
    if rows:
        store.write("metrics.csv", rows.encode())


def listed(run: Run, *arguments: str) -> list[dict[str, Any]]:
    outcome = run("runs", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    found: list[dict[str, Any]] = json.loads(outcome.out)
    return found


# ---- runs that were made by a fit ------------------------------------------------------------------------------------


def test_runs_of_real_fits_listed_and_compared(url: str, run: Run) -> None:
    keep = lambda: sl.ModelCheckpoint(monitor="val_acc", mode="max")  # noqa: E731
    made = []
    for lr in (0.1, 0.01):
        sl.seed_everything(1)
        trainer = new_trainer(url, max_epochs=2, name="digits", callbacks=[keep()])
        made.append((trainer, trainer.fit(Mlp(lr=lr), train_loader(96), val_loader(64))))
    new_trainer(url, max_epochs=1, name="other").fit(Mlp(), train_loader(64), val_loader(32))

    found = listed(run, url)
    assert [(each["experiment"], each["version"]) for each in found] == [
        ("digits", "version_0"), ("digits", "version_1"), ("other", "version_0"),
    ]  # fmt: skip
    for each, (trainer, fitted) in zip(found, made, strict=False):
        assert (each["state"], each["epochs"], each["steps"], each["url"]) == ("finished", 2, 6, fitted.url)
        assert each["metric"] == "val_acc"
        assert each["best"] == pytest.approx(float(trainer.checkpoint_callback.best_model_score))
        assert each["last"] == pytest.approx(fitted.metrics["val_acc"])
        assert each["module"] == "training.Mlp"
    assert found[2]["metric"] == "val_loss"  # nothing was monitored
    outcome = run("runs", url)
    assert outcome.code == 0
    assert "digits/version_1" in outcome.out
    assert f"{found[0]['best']:.4g}" in outcome.out

    outcome = run("runs", "compare", f"{url}/digits/version_0", f"{url}/digits/version_1", "--json")
    assert outcome.code == 0, outcome.err
    compared = json.loads(outcome.out)
    assert compared["settings"] == {"hparams.lr": [0.1, 0.01]}
    assert compared["metrics"]["steps"] == [6, 6]
    last = [fitted.metrics["val_loss"] for _, fitted in made]
    assert compared["metrics"]["val_loss"] == pytest.approx(last, rel=1e-6)
    assert set(compared["metrics"]) >= {"val_loss (best)", "val_acc", "val_acc (best)", "seconds"}
    outcome = run("runs", "compare", f"{url}/digits/version_0", f"{url}/digits/version_1")
    assert [line.split() for line in outcome.out.splitlines() if "hparams.lr" in line] == [
        ["│", "hparams.lr", "│", "0.1", "│", "0.01", "│"]
    ]  # fmt: skip


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_one_experiment_one_run_and_the_default(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/version_2", "a/version_10", "b/version_0"):
        write("runs", name)
    (tmp_path / "runs" / "notes.txt").write_text("of somebody else")
    (tmp_path / "runs" / "a" / "version_3").mkdir()  # no run: it has no run.json
    versions = lambda rows: [f"{row['experiment']}/{row['version']}" for row in rows]  # noqa: E731
    assert versions(listed(run)) == ["a/version_2", "a/version_10", "b/version_0"]
    assert versions(listed(run, "runs/a")) == ["a/version_2", "a/version_10"]
    assert versions(listed(run, "runs/a/version_10")) == ["a/version_10"]


def test_the_metric_and_what_is_best(tmp_path: Path, run: Run) -> None:
    csv = "step,acc,val_loss\n1,0.1,3\n2,0.9,1\n3,nan,2\n"
    write(str(tmp_path), "a/version_0", csv, metrics={"val_loss": 2, "acc": None})
    [row] = listed(run, str(tmp_path))
    assert (row["metric"], row["best"], row["last"]) == ("val_loss", 1, 2)
    [row] = listed(run, str(tmp_path), "--metric", "acc")
    assert (row["metric"], row["best"], row["last"]) == ("acc", 0.9, None)  # NaN is never best
    [row] = listed(run, str(tmp_path), "--metric", "val_loss", "--mode", "max")
    assert row["best"] == 3
    [row] = listed(run, str(tmp_path), "--metric", "lacking")
    assert (row["best"], row["last"]) == (None, None)


def test_sorting(tmp_path: Path, run: Run) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number, best in enumerate([0.5, None, 0.25, 0.75]):
        monitored = {} if best is None else {"monitor": "m", "mode": "max", "best": best, "metrics": {"m": best}}
        begun = start - timedelta(days=number)
        write(str(tmp_path), f"a/version_{number}", started_at=begun, epochs=number, **monitored)
    order = lambda key: [row["version"][-1] for row in listed(run, str(tmp_path), f"--sort={key}")]  # noqa: E731
    assert order("started") == ["3", "2", "1", "0"]
    assert order("name") == order("epochs") == ["0", "1", "2", "3"]
    assert order("best") == ["2", "0", "3", "1"]
    assert order("-best") == ["3", "0", "2", "1"]  # those that have none come last in any case
    outcome = run("runs", str(tmp_path), "--sort", "beste")
    assert outcome.code == 2
    assert "Runs have no 'beste' to sort by. Did you mean 'best'" in outcome.err


def test_what_became_of_each(tmp_path: Path, run: Run) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    here = {"state": "running", "host": socket.gethostname()}
    write(str(tmp_path), "a/version_0", **here, pid=int(dead.stdout))
    write(str(tmp_path), "a/version_1", **here, pid=os.getpid(), seconds=5)
    write(str(tmp_path), "a/version_2", state="running", host="elsewhere", pid=int(dead.stdout))
    write(str(tmp_path), "a/version_3", state="failed", error="OSError: s3://me:***@b \x1b[2J")
    write(str(tmp_path), "a/version_4", state=None)
    for number, text in enumerate(["{", "[]", '{"epochs": "many"}', "\xff\xfe", "[" * 100_000]):
        open_store(str(tmp_path)).write(f"a/version_{number + 5}/run.json", text.encode("latin-1"))
    rows = listed(run, str(tmp_path))
    states = {row["version"]: row["state"] for row in rows}
    assert [states[f"version_{number}"] for number in range(10)] == [
        "lost", "running", "running", "failed", "unknown", *["damaged"] * 5,
    ]  # fmt: skip
    assert next(row["seconds"] for row in rows if row["version"] == "version_1") > 5
    damaged = next(row for row in rows if row["version"] == "version_5")
    assert "version_5/run.json is damaged: it is no record of a run" in damaged["problem"]
    outcome = run("runs", str(tmp_path))
    assert outcome.code == 0
    assert outcome.out.count("damaged") == 5
    assert "\x1b" not in outcome.out


def test_names_from_elsewhere_move_no_cursor(tmp_path: Path, run: Run) -> None:
    write(str(tmp_path), "a/version_0", "step,\x1b[2Jbad\n1,2\n2,3\n", monitor="\x1b[2Jbad")
    write(str(tmp_path), "a/version_1", "step,good\n1,2\n", monitor="good")
    for arguments in ([str(tmp_path)], ["compare", *(f"{tmp_path}/a/version_{n}" for n in (0, 1))]):
        outcome = run("runs", *arguments)
        assert outcome.code == 0
        assert "\x1b" not in outcome.out
        assert "bad" in outcome.out


def test_roots_without_runs(url: str, run: Run) -> None:
    outcome = run("runs", url)
    assert outcome.code == 1
    assert f"No run below {url}" in outcome.err
    assert outcome.out == ""


def test_credentials_in_a_url_are_not_shown(run: Run) -> None:
    root = f"memory://me:{SECRET}@host/{os.urandom(4).hex()}"
    write(root, "a/version_0", config={"x": 1})
    for arguments in ([root], [root, "--json"], ["compare", f"{root}/a/version_0", f"{root}/a/version_1"]):
        outcome = run("runs", *arguments)
        assert SECRET not in outcome.out + outcome.err


# ---- compare ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_compared(tmp_path: Path, run: Run) -> None:
    write(str(tmp_path), "a/version_0")
    open_store(str(tmp_path)).write("a/version_1/run.json", b"{")
    one, damaged, absent = (f"{tmp_path}/a/version_{n}" for n in range(3))
    for arguments, message in (
        ([one], "Give two or more"),
        ([one, damaged], "version_1/run.json is damaged"),
        ([one, absent], "it has no run.json"),
    ):
        outcome = run("runs", "compare", *arguments)
        assert outcome.code in (1, 2)
        assert message in outcome.err
    open_store(str(tmp_path)).write("a/version_1/run.json", b"{}")
    open_store(str(tmp_path)).write("a/version_1/hparams.yaml", b"a: [")
    outcome = run("runs", "compare", one, damaged)
    assert "version_1/hparams.yaml cannot be read" in outcome.err


def test_what_differs_is_named_by_its_place(tmp_path: Path, run: Run) -> None:
    settings = [{"net": {"width": 8, "same": 1}}, {"net": {"width": 16, "same": 1, "depth": 2}}, {}]
    for number, config in enumerate(settings):
        write(str(tmp_path), f"a/version_{number}", lineage={"seed": number // 2}, module=f"x.Net{number // 2}")
        open_store(f"{tmp_path}/a/version_{number}").write("config.yaml", json.dumps(config).encode())
        environment = {"packages": {"torch": f"2.{number // 2}", "numpy": "2.0"}}
        open_store(f"{tmp_path}/a/version_{number}").write("environment.json", json.dumps(environment).encode())
    outcome = run("runs", "compare", *(f"{tmp_path}/a/version_{n}" for n in range(3)), "--json")
    assert json.loads(outcome.out)["settings"] == {
        "module": ["x.Net0", "x.Net0", "x.Net1"],
        "config.net.width": [8, 16, None],
        "config.net.same": [1, 1, None],
        "config.net.depth": [None, 2, None],
        "seed": [0, 0, 1],
        "package.torch": ["2.0", "2.0", "2.1"],
    }
    outcome = run("runs", "compare", *(f"{tmp_path}/a/version_{n}" for n in range(2)))
    assert "config.net.same" not in outcome.out


# ---- parts -----------------------------------------------------------------------------------------------------------


def test_damaged_rows_of_metrics_are_left_out() -> None:
    data = b'step,a,b\n1,0.5,\nx,1,1\n2,one,0.25\n3,0.125\n4,1,2,3\n\xff,1,1\n5,"1'
    assert parse_metrics(data) == {"a": [(1, 0.5), (3, 0.125), (4, 1.0), (5, 1.0)], "b": [(2, 0.25), (4, 2.0)]}
    assert parse_metrics(b"") == parse_metrics(b"a,b\n1,2\n") == {}


def test_whether_more_is_better_goes_by_the_name() -> None:
    more = ["val_acc", "accuracy", "f1", "val/f1", "AUROC", "mAP", "top5-acc", "reward", "dice_score"]
    less = ["val_loss", "loss", "mse", "wer", "perplexity", "mapped_loss", "diced"]
    assert {better_mode(name) for name in more} == {"max"}
    assert {better_mode(name) for name in less} == {"min"}
    assert best_of([float("nan"), 2.0, 1.0], "min") == 1.0
    assert best_of([float("nan")], "max") is None


def test_times_as_people_read_them() -> None:
    assert [duration(seconds) for seconds in (None, 1.26, 61.0, 7322.0)] == ["", "1.3 s", "1 min 01 s", "2 h 02 min"]


def test_many_runs_are_read_at_once_and_stay_in_order(tmp_path: Path) -> None:
    for number in range(40):
        write(str(tmp_path), f"a/version_{number}")
    assert [found.version for found in find_runs(str(tmp_path))] == [f"version_{number}" for number in range(40)]


def test_runs_are_read_without_torch(tmp_path: Path) -> None:
    write(str(tmp_path), "a/version_0", "step,loss\n1,2\n2,1\n")
    code = (
        "import sys; sys.modules.update(torch=None, ray=None)\n"
        f"from shipline.commands import main; sys.exit(main(['runs', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a/version_0" in done.stdout
