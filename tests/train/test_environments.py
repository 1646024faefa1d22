"""Who started the processes of a run: what each sets, and what is made of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from environment_conformance import EnvironmentConformance
from helpers import Install

import shipline as sl
from shipline.errors import ConfigError, TrainingError
from shipline.train.environments import (
    KubernetesEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
    pick_environment,
)
from shipline.train.environments.slurm import first_machine
from shipline.train.precision import Precision

_OURS = ("SLURM_", "OMPI_", "PMI", "MPI_LOCAL", "MV2_", "TORCHELASTIC_", "JOB_COMPLETION_INDEX")
_SHARED = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT",
    "ENVIRONMENT",
)  # fmt: skip


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nobody has started this process with others."""
    for name in [name for name in os.environ if name.startswith(_OURS) or name in _SHARED]:
        monkeypatch.delenv(name)
    return monkeypatch


class TestTorchrun(EnvironmentConformance):
    name, cls = "torchrun", TorchElasticEnvironment

    def variables(self, rank: int, size: int = 4) -> dict[str, str]:
        return {
            "TORCHELASTIC_RUN_ID": "none", "RANK": f"{rank}", "WORLD_SIZE": f"{size}", "LOCAL_RANK": f"{rank % 2}",
            "LOCAL_WORLD_SIZE": f"{min(2, size)}", "GROUP_RANK": f"{rank // 2}", "MASTER_ADDR": "node1",
            "MASTER_PORT": "29400",
        }  # fmt: skip


class TestSlurm(EnvironmentConformance):
    name, cls = "slurm", SLURMEnvironment

    def variables(self, rank: int, size: int = 4) -> dict[str, str]:
        return {
            "SLURM_JOB_ID": "4321", "SLURM_JOB_NAME": "digits", "SLURM_STEP_ID": "0", "SLURM_PROCID": f"{rank}",
            "SLURM_STEP_NUM_TASKS": f"{size}", "SLURM_LOCALID": f"{rank % 2}", "SLURM_NODEID": f"{rank // 2}",
            "SLURM_STEP_TASKS_PER_NODE": "2(x2)" if size == 4 else f"{size}", "SLURM_STEP_NUM_NODES": "2",
            "SLURM_STEP_NODELIST": "node[03-04]",
        }  # fmt: skip


class TestMpi(EnvironmentConformance):
    name, cls = "mpi", MPIEnvironment

    def variables(self, rank: int, size: int = 4) -> dict[str, str]:
        return {
            "OMPI_COMM_WORLD_RANK": f"{rank}", "OMPI_COMM_WORLD_SIZE": f"{size}", "PMIX_NAMESPACE": "prterun-node1-7@1",
            "OMPI_COMM_WORLD_LOCAL_RANK": f"{rank % 2}", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_ADDR": "node1",
        }  # fmt: skip


class TestMpich(TestMpi):
    """As Intel MPI sets it."""

    def variables(self, rank: int, size: int = 4) -> dict[str, str]:
        return {
            "PMI_RANK": f"{rank}", "PMI_SIZE": f"{size}", "MPI_LOCALRANKID": f"{rank % 2}", "MPI_LOCALNRANKS": "2",
            "MASTER_ADDR": "node1",
        }  # fmt: skip


class TestKubernetes(EnvironmentConformance):
    """As a PyTorchJob sets it."""

    name, cls = "kubernetes", KubernetesEnvironment
    places = [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3)]

    def variables(self, rank: int, size: int = 4) -> dict[str, str]:
        return {"RANK": f"{rank}", "WORLD_SIZE": f"{size}", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}

    def test_settings_that_contradict_it(self, start: object) -> None:
        super().test_settings_that_contradict_it(start)
        with pytest.raises(ConfigError, match="Trainer has num_nodes=2, but Kubernetes has started 4 processes on 4 "):
            sl.Trainer(num_nodes=2)

    def test_a_trainer_is_one_of_them(self, start: object) -> None:
        start(3)  # type: ignore[operator]
        trainer = sl.Trainer(accelerator="cpu", num_nodes=4)
        assert (trainer.global_rank, trainer.local_rank, trainer.workers, trainer.num_nodes) == (3, 0, 4, 4)


class TestIndexedJob(TestKubernetes):
    """As a JobSet or an indexed Job sets it."""

    def variables(self, rank: int, size: int = 4) -> dict[str, str]:
        return {"JOB_COMPLETION_INDEX": f"{rank}", "WORLD_SIZE": f"{size}", "MASTER_ADDR": "train-0.train"}


_STEP = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"}
_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
_PMI = {"PMI_RANK": "1", "PMI_SIZE": "4"}
_TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a"}


@pytest.mark.parametrize(
    ("variables", "kind", "size"),
    [
        ({}, None, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None, None),  # a shell that salloc has opened
        (_STEP | {"SLURM_JOB_NAME": "bash"}, None, None),  # srun --pty bash
        (_STEP, SLURMEnvironment, 4),
        (_STEP | {"SLURM_STEP_NUM_TASKS": "2"}, SLURMEnvironment, 2),  # a step of some of the job's tasks
        (_STEP | {"SLURM_PROCID": "0", "ENVIRONMENT": "BATCH"}, SLURMEnvironment, 1),  # the job's script, without srun
        (_STEP | {"ENVIRONMENT": "BATCH", "SLURM_STEP_ID": "0"}, SLURMEnvironment, 4),
        (_STEP | _TORCHRUN, TorchElasticEnvironment, 2),  # srun torchrun ...
        (_STEP | _MPI, MPIEnvironment, 2),  # mpirun in a job
        (_STEP | _PMI | {"SLURM_STEP_NUM_TASKS": "4"}, SLURMEnvironment, 4),  # srun --mpi=pmi2
        (_STEP | _PMI | {"SLURM_STEP_NUM_TASKS": "2"}, MPIEnvironment, 4),  # mpiexec, whose proxies srun has started
        ({"RANK": "0", "WORLD_SIZE": "2"}, None, None),  # nobody says where the others are
    ],
)
def test_who_has_started_the_process(
    clean: pytest.MonkeyPatch, variables: dict[str, str], kind: type | None, size: int | None
) -> None:
    for name, value in variables.items():
        clean.setenv(name, value)
    found = pick_environment()
    assert (None if found is None else type(found)) is kind
    assert size is None or (found is not None and found.world_size() == size)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (_TORCHRUN | {"RANK": "one"}, r"RANK is 'one': it must be a whole number"),
        ({"TORCHELASTIC_RUN_ID": "1", "RANK": "0"}, r"WORLD_SIZE is not set: it must be"),
        (_STEP | {"SLURM_PROCID": "-1"}, r"SLURM_PROCID is '-1'"),
    ],
)
def test_variables_that_say_nothing(clean: pytest.MonkeyPatch, variables: dict[str, str], said: str) -> None:
    for name, value in variables.items():
        clean.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        sl.Trainer()


@pytest.mark.parametrize(
    ("machines", "first"),
    [
        ("node1", "node1"), ("node1,node2", "node1"), ("node[03-05,07],other", "node03"), ("n[9,11]-ib", "n9-ib"),
        ("rack[1-2]node[3-4]", "rack1node3"),
    ],
)  # fmt: skip
def test_the_first_machine_of_a_list(machines: str, first: str) -> None:
    assert first_machine(machines) == first


def test_mpi_on_several_machines_needs_an_address(clean: pytest.MonkeyPatch) -> None:
    for name, value in _MPI.items():
        clean.setenv(name, value)
    environment = MPIEnvironment()
    with pytest.raises(ConfigError, match=r"does not tell them where the first one is: set MASTER_ADDR .*mpirun -x"):
        _ = environment.main_address
    clean.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert environment.main_address == "127.0.0.1"


def test_a_queue_that_refuses(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (_STEP | {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3"}).items():
        clean.setenv(name, value)
    clean.setenv("PATH", str(tmp_path))
    with pytest.raises(TrainingError, match=r"saved, but `scontrol requeue 6_3` failed: .*with ckpt_path='last'\."):
        SLURMEnvironment().requeue()
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'Requested operation not supported' >&2\nexit 1\n")
    (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(TrainingError, match=r"`scontrol requeue 6_3` ended with 1: Requested operation not supp"):
        SLURMEnvironment().requeue()


def test_one_of_the_users_own(clean: pytest.MonkeyPatch, install: Install) -> None:
    """Given to the Trainer, or found by its name; settings such as these are Lightning's."""
    for name, value in _STEP.items():
        clean.setenv(name, value)
    own = Precision("32-true", torch.device("cpu"))
    trainer = sl.Trainer(plugins=[SLURMEnvironment(auto_requeue=False), own])
    assert trainer.environment is not None
    assert trainer.environment.requeue_signal is None
    with pytest.raises(ConfigError, match="a process is started by one environment, so give one"):
        sl.Trainer(plugins=[SLURMEnvironment(), SLURMEnvironment()])
    install("[shipline.environment]\nmine = ext_plugins:Mine\n", MINE)
    assert type(pick_environment()).__name__ == "Mine"
    assert sl.Trainer(accelerator="cpu").workers == 5


@pytest.mark.parametrize(
    ("source", "said"),
    [("raise RuntimeError('no driver')", "no driver"), ("class Mine:\n    detect = None", "not callable")],
    ids=["import", "detect"],
)
def test_a_broken_package_stops_only_those_who_ask_for_it(
    clean: pytest.MonkeyPatch, install: Install, caplog: pytest.LogCaptureFixture, source: str, said: str
) -> None:
    for name, value in _STEP.items():
        clean.setenv(name, value)
    install("[shipline.environment]\nmine = ext_plugins:Mine\n", source)
    found = pick_environment()
    assert found is not None
    assert found.name == "SLURM"
    assert "The cluster environment 'mine' is passed over: " in caplog.text
    assert said in caplog.text


MINE = """
from shipline.train.environments import SLURMEnvironment

class Mine(SLURMEnvironment):
    def world_size(self):
        return 5
"""


def test_a_group_that_the_user_has_made_is_used(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the variables say."""
    for name, value in _STEP.items():
        clean.setenv(name, value)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        trainer = sl.Trainer(accelerator="cpu", max_epochs=1)
        assert trainer.environment is not None
        assert (trainer.workers, trainer.environment.name) == (1, "torch.distributed")
    finally:
        dist.destroy_process_group()
