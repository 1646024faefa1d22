"""The same script in one process, under torchrun and as two tasks of SLURM; see scripts/anywhere.py."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import free_port
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import rows

import shipline as sl
from shipline.runs import open_run

SCRIPT = Path(__file__).parent / "scripts" / "anywhere.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("anywhere", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quiet(**more: str) -> dict[str, str]:
    """This environment, with one thread for each process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def found_in(directory: Path) -> list[dict[str, Any]]:
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both workers saw."""
    directory = tmp_path_factory.mktemp("torchrun")
    command = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(SCRIPT), str(directory)]
    done = subprocess.run(command, env=quiet(MORE="1"), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return found_in(directory)


class Slurm:
    """Two tasks of a step, and a `scontrol` that writes down what it is asked."""

    def __init__(self, directory: Path, **variables: str) -> None:
        self.directory, self.variables = directory, variables
        self.asked = directory / "asked"
        (directory / "scontrol").write_text(f"#!/bin/sh\necho $* >>{self.asked}\n")
        (directory / "scontrol").chmod(0o755)

    def run(self, restarts: int) -> list[tuple[int, str, str]]:
        """Codes, and what was printed."""
        tasks = []
        for rank in range(2):
            variables = {
                "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "digits", "SLURM_STEP_ID": f"{restarts}",
                "SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}", "SLURM_NODEID": "0",
                "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "localhost",
                "SLURM_RESTART_COUNT": f"{restarts}", "MASTER_PORT": str(self.port),
                "PATH": f"{self.directory}:{os.environ['PATH']}", **self.variables,
            }  # fmt: skip
            command = [sys.executable, "-W", "error", str(SCRIPT), str(self.directory)]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            tasks.append(subprocess.Popen(command, env=quiet(**variables), **pipes))
        try:
            ended = [(task.communicate(timeout=240), task.returncode) for task in tasks]
        finally:
            for task in tasks:
                task.kill()
                task.wait()
        return [(code, out, err) for (out, err), code in ended]

    @property
    def port(self) -> int:
        if not hasattr(self, "_port"):
            self._port = free_port()
        return self._port


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job that is told to end in its third step, and starts again."""
    return twice(Slurm(tmp_path_factory.mktemp("slurm")))


def twice(step: Slurm) -> dict[str, Any]:
    """Let it be told to end, and start again."""
    first = step.run(0)
    asked = step.asked.read_text()
    second = step.run(1)
    assert [code for code, _, _ in second] == [0, 0], second
    left = [json.loads((step.directory / f"{rank}.left").read_text()) for rank in range(2)]
    return {"first": first, "asked": asked, "second": second, "found": found_in(step.directory), "left": left}


def plain_weights(script: Any) -> list[torch.Tensor]:
    """What a loop over whole batches in one process makes of the same weights."""
    sl.seed_everything(0)
    module = script.Predicts()
    optimizer = module.configure_optimizers()
    for _ in range(2):
        for image, digit in DataLoader(rows(0, 128), 32):
            optimizer.zero_grad()
            F.cross_entropy(module(image), digit).backward()
            optimizer.step()
    return [parameter.detach() for parameter in module.parameters()]


def test_the_weights_are_those_of_one_process(script: Any, torchrun: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = script.main(str(tmp_path))
    assert alone["place"] == [0, 0, 1]
    assert not alone["group"]
    for worker in (alone, *torchrun):
        for own, plain in zip(worker["weights"], plain_weights(script), strict=True):
            torch.testing.assert_close(torch.tensor(own), plain, rtol=1e-4, atol=1e-6)
        assert worker["predicted"] == alone["predicted"]
        assert worker["validated"]["val_acc"] == pytest.approx(alone["validated"]["val_acc"], abs=1e-7)
    assert torchrun[0]["weights"] == torchrun[1]["weights"]


def test_workers_of_torchrun_are_one_run(torchrun: list[dict[str, Any]]) -> None:
    first, second = torchrun
    assert (first["place"], second["place"]) == ([0, 0, 2], [1, 1, 2])
    assert not first["ray"]
    assert not second["ray"]
    assert first["group"]
    assert first["url"] == second["url"]
    assert first["url"].endswith("/anywhere/version_0")
    assert first["drawn"] != second["drawn"]


def test_the_first_cause_is_told_to_all(torchrun: list[dict[str, Any]]) -> None:
    said = "Worker 1 of 2 failed: ValueError: the disk of this worker is full"
    assert [worker["failure"] for worker in torchrun] == [said, said]


def test_what_workers_exchange(torchrun: list[dict[str, Any]]) -> None:
    for worker in torchrun:
        stacked, ranks, text, total, first, padded, objects, last, uneven, many = worker["exchanged"]
        assert (stacked, ranks, text) == ([[1.0, 1.0], [2.0, 2.0]], [0, 1], "text")
        assert (total, first, padded) == ([3.0, 3.0], [1.0, 1.0], [[0.0, -1.0], [0.0, 1.0]])
        assert (objects, last) == ([0, 1], {"rank": 1})
        assert uneven == (
            "all_gather was given a tensor of shape (1,) and torch.float32 on worker 0, and (2,) and torch.float32 on "
            "worker 1: give tensors of one form, or pad them (all_gather has pad=...)."
        )
        assert many.startswith("reduce was given a tensor of shape (1,)")


def test_nothing_of_the_group_is_left_when_a_worker_ends(slurm: dict[str, Any]) -> None:
    """A thread of it that lives on may need the interpreter when that is gone, and ends the process with SIGABRT."""
    assert slurm["left"] == [[], []]


def test_a_job_goes_back_to_its_queue_and_on_from_there(slurm: dict[str, Any], torchrun: list[dict[str, Any]]) -> None:
    """Asked by a signal of one task; the weights are those of a run that was not, bit for bit."""
    assert [code for code, _, _ in slurm["first"]] == [138, 138], slurm["first"]
    assert slurm["asked"] == "requeue 77\n"
    for worker, undisturbed in zip(slurm["found"], torchrun, strict=True):
        assert worker["weights"] == undisturbed["weights"]
        assert worker["place"] == undisturbed["place"]
        assert worker["step"] == 8
        assert worker["url"].endswith("/anywhere/version_0")  # the same run
        assert not worker["ray"]
    assert open_run(slurm["found"][0]["url"]).record.job == "77"


def test_a_job_finds_what_it_saved_in_a_directory_of_its_own(tmp_path: Path, torchrun: list[dict[str, Any]]) -> None:
    job = twice(Slurm(tmp_path, SAVED_IN=str(tmp_path / "saved")))
    assert open_run(job["found"][0]["url"]).record.resumed_at is not None
    for worker, undisturbed in zip(job["found"], torchrun, strict=True):
        assert worker["weights"] == undisturbed["weights"]
        assert worker["step"] == 8


def test_the_first_task_alone_prints(slurm: dict[str, Any]) -> None:
    (_, begun, _), (_, beside, _) = slurm["first"]
    (_, ended, _), (_, beside_again, _) = slurm["second"]
    assert "Parameters" in begun
    assert "epoch 2/2" in ended
    assert beside == beside_again == ""
