"""Candidates made and judged by others: by workers of a real Ray cluster of two nodes, or by whoever takes calls."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import ray_cluster
from helpers import ROOT, wait_until
from small_modules import Tiny

import shipline as sl
from shipline.artifact import Artifact, open_model
from shipline.commands import main
from shipline.errors import ConfigError, GateError
from shipline.export import Source, search, workbench
from shipline.export.latency import Latency
from shipline.export.plan import BASELINE, searched
from shipline.export.trained import Trained
from shipline.export.workbench import Workbench
from shipline.train import RayCluster, RayExecutor, Run


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """This process is connected to two nodes with a CPU each."""
    import ray

    # Workers must find the modules that this process does, too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "support"))
        with ray_cluster(2) as found:
            ray.init(found.address, logging_level="ERROR", log_to_driver=False)
            yield


@pytest.fixture
def ray_workers(cluster: None) -> Iterator[RayExecutor]:
    with RayExecutor(2, RayCluster(placement="SPREAD")) as executor:
        yield executor


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine is busy with: int8 is fastest, then int8 by OpenVINO, and the others as float32."""

    def measure(runtimes: dict[str, Any], rows: Any, batch: int) -> dict[str, Latency]:
        times = {"int8 on onnxruntime": 0.5, "int8 on openvino": 0.6}
        return {name: Latency(batch, t, t, t, (t,)) for name in runtimes for t in [times.get(name, 1.0)]}

    monkeypatch.setattr(workbench, "measure", measure)


class Here(Executor):
    """Makes calls in this process, and counts them."""

    def __init__(self, lost: Callable[[Any], bool] = lambda _: False) -> None:
        self.calls: list[str] = []
        self._lost = lost

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.calls.append(fn.__name__)
        try:
            if self._lost(fn):
                raise OSError("the worker is gone")
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def raises(error: Exception) -> None:
    raise error


def exits() -> None:
    os._exit(1)


def total(rows: np.ndarray, *, times: int) -> tuple[float, int]:
    return float(rows.sum()) * times, os.getpid()


@pytest.mark.ray
def test_a_call_is_made_in_another_process(ray_workers: RayExecutor) -> None:
    rows = np.arange(10.0)
    futures = [ray_workers.submit(total, rows, times=times) for times in (1, 2)]
    found = [future.result(60) for future in futures]
    assert [value for value, _ in found] == [45.0, 90.0]
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.ray
def test_errors_come_back_as_they_are_and_a_lost_worker_is_told(ray_workers: RayExecutor) -> None:
    error = ray_workers.submit(raises, GateError("row 3 differs.")).exception(60)
    assert type(error) is GateError
    assert str(error) == "row 3 differs."
    assert "WorkerCrashed" in type(ray_workers.submit(exits).exception(120)).__name__


@pytest.mark.ray
def test_what_is_cancelled_is_given_up(ray_workers: RayExecutor) -> None:
    future = ray_workers.submit(total, np.arange(3.0), times=1)
    if future.cancel():
        with pytest.raises(CancelledError):
            future.result(60)
    assert ray_workers.submit(total, np.arange(3.0), times=1).result(60)[0] == 3.0


def stays(folder: Path) -> None:
    """Work for as long as nobody interrupts, with files that go at its end."""
    with tempfile.TemporaryDirectory(dir=folder):
        (folder / "began").touch()
        while True:
            time.sleep(0.05)


@pytest.mark.ray
def test_a_call_that_is_given_up_tidies_up(cluster: None, tmp_path: Path) -> None:
    with RayExecutor(2) as executor:
        executor.submit(stays, tmp_path)
        wait_until(lambda: (tmp_path / "began").exists(), 60)
    wait_until(lambda: [each.name for each in tmp_path.iterdir()] == ["began"], 20)


@pytest.mark.parametrize("workers", [0, True, 1.5])
def test_a_number_of_workers_that_means_nothing_is_refused(workers: Any) -> None:
    with pytest.raises(ConfigError, match=r"RayExecutor has workers=.*; set a whole number from 1 on"):
        RayExecutor(workers)


def test_calls_need_an_open_executor() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        RayExecutor(1).submit(exits)


def published(artifact: Artifact) -> dict[str, Any]:
    """What is in an artifact, but for what was measured with a clock, and when it was made."""
    manifest = artifact.manifest
    report = json.loads(artifact.read("report.json"))
    return {
        "way": (manifest.precision, manifest.backend),
        "files": {name: manifest.files[name].sha256 for name in ("model.onnx", "golden.safetensors")},
        "verdicts": [each.model_dump() for each in manifest.verdicts],
        "metrics": manifest.metrics,
        "candidates": [(each["name"], each["bytes"], each["chosen"]) for each in report["candidates"]],
        "refused": report["refused"],
    }


@pytest.mark.ray
def test_the_same_is_published_as_without(
    trained: Run, tmp_path: Path, timed: None, ray_workers: RayExecutor, command_line: list[str]
) -> None:
    """And on the command line."""
    recipe = {"precision": "auto", "max_metric_drop": 0.05, "tolerance": 0.2, "remember": False}
    alone, together = (
        published(sl.export(trained, recipe, to=str(tmp_path / name), executor=executor))
        for name, executor in (("alone", None), ("together", ray_workers))
    )
    assert alone["way"] == ("int8", "onnxruntime")
    assert together == alone
    options = [
        "--auto",
        "--budget",
        "0.05",
        "--recipe.tolerance",
        "0.2",
        "--recipe.remember",
        "false",
        "--workers",
        "2",
    ]
    assert main([*command_line, *options]) == 0
    said = published(open_model(command_line[command_line.index("--to") + 1]).stable())
    assert {**said, "verdicts": None} == {**alone, "verdicts": None}


def found_by(executor: Executor | None, source: Source, looked_at: Trained) -> tuple[list[str], str, list[str]]:
    recipe = sl.Recipe(precision="auto", max_metric_drop=0.05, tolerance=0.2, remember=False)
    with Workbench(source, recipe, looked_at, executor) as bench:
        found = search.search(bench, recipe)
    return [str(each.plan) for each in found.candidates], str(found.chosen.plan), found.refused


@pytest.mark.usefixtures("quick_search", "timed")
def test_files_are_made_and_judged_by_whoever_takes_calls(source: Source, looked_at: Trained) -> None:
    executor = Here()
    found = found_by(executor, source, looked_at)
    assert found == found_by(None, source, looked_at)
    made = executor.calls.count("made_elsewhere")
    assert made == len({plan.passes for plan in searched(None)} - {()})
    assert executor.calls.count("judged_elsewhere") == len(found[0]) - 1


@pytest.mark.usefixtures("quick_search", "timed")
@pytest.mark.parametrize("lost", ["made_elsewhere", "judged_elsewhere"])
def test_what_a_lost_worker_does_not_bring_is_done_here(source: Source, looked_at: Trained, lost: str) -> None:
    executor = Here(lambda call: call.__name__ == lost)
    assert found_by(executor, source, looked_at) == found_by(None, source, looked_at)


@pytest.mark.usefixtures("quick_search", "timed")
def test_what_is_published_is_judged_here(source: Source, looked_at: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine may have another processor."""
    recipe = sl.Recipe(precision="auto", max_metric_drop=0.05, tolerance=0.2, remember=False)
    with Workbench(source, recipe, looked_at, Here()) as bench:
        judged, judge = [], bench._metrics
        monkeypatch.setattr(bench, "_metrics", lambda runtime, like: judged.append(1) or judge(runtime, like))
        found = search.search(bench, recipe)
    assert str(found.chosen.plan) == "int8 on onnxruntime"
    assert not found.chosen.recalled
    assert len(judged) == 2, f"{BASELINE} and what was chosen"
    assert isinstance(found.chosen.trained.module, Tiny)
