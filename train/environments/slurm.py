"""SLURM: the tasks of a step that srun has started; and a job that goes back to its queue when its time is over."""

from __future__ import annotations

import os
import re
import signal
import subprocess

from shipline.errors import ConfigError, TrainingError
from shipline.train.environments.base import ClusterEnvironment, number, port_of

_INTERACTIVE = ("bash", "sh", "zsh", "interactive")


class SLURMEnvironment(ClusterEnvironment):
    """Started by srun, or one process of a job's own script.

    Args:
        auto_requeue: on `requeue_signal`, save the run, give the job back to its queue, and go on from there when it
            starts again. The job asks for the signal: `#SBATCH --signal=USR1@120`.
        requeue_signal: which.

    Source: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
    """

    name = "SLURM"

    def __init__(self, auto_requeue: bool = True, requeue_signal: int = signal.SIGUSR1) -> None:
        self.requeue_signal = requeue_signal if auto_requeue else None

    @staticmethod
    def detect() -> bool:
        """Whether this is a task of a job; what somebody types in a shell within an allocation is none."""
        typed = os.environ.get("SLURM_JOB_NAME") in _INTERACTIVE
        return "SLURM_JOB_ID" in os.environ and "SLURM_PROCID" in os.environ and not typed

    def world_size(self) -> int:
        """The tasks of the step; 1 in the job's script itself, which SLURM starts once."""
        if "SLURM_STEP_NUM_TASKS" in os.environ:
            return number("SLURM_STEP_NUM_TASKS")
        return 1 if self._is_script() else number("SLURM_NTASKS", 1)

    def global_rank(self) -> int:
        """What SLURM_PROCID says."""
        return number("SLURM_PROCID")

    def local_rank(self) -> int:
        """What SLURM_LOCALID says."""
        return number("SLURM_LOCALID", 0)

    def local_world_size(self) -> int | None:
        """What SLURM_STEP_TASKS_PER_NODE says, where all machines have equally many."""
        text = os.environ.get("SLURM_STEP_TASKS_PER_NODE", os.environ.get("SLURM_TASKS_PER_NODE", ""))
        found = re.fullmatch(r"(\d+)(\(x\d+\))?", text)
        each = int(found[1]) if found else None
        return each if each and self.world_size() % each == 0 else None

    def node_rank(self) -> int:
        """What SLURM_NODEID says."""
        return number("SLURM_NODEID", 0)

    @property
    def main_address(self) -> str:
        """What MASTER_ADDR says, else the first machine of the step."""
        if (address := os.environ.get("MASTER_ADDR")) is not None:
            return address
        nodes = number("SLURM_STEP_NUM_NODES", number("SLURM_JOB_NUM_NODES", number("SLURM_NNODES", 0)))
        names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        machines = next((os.environ[name] for name in names if name in os.environ), "")
        if nodes == 1 or not machines:
            return "127.0.0.1"
        return first_machine(machines)

    @property
    def main_port(self) -> int:
        """What MASTER_PORT says; else one that follows from the job and its step."""
        step = os.environ.get("SLURM_STEP_ID", os.environ.get("SLURM_STEPID", ""))
        return number("MASTER_PORT", port_of(f"{os.environ['SLURM_JOB_ID']}.{step}"))

    @property
    def job(self) -> str | None:
        """The job's number; of a member of an array, as `scontrol` knows it."""
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]

    def restarted(self) -> bool:
        """Whether the job has been given back to its queue before, by us or by SLURM."""
        return self.requeue_signal is not None and number("SLURM_RESTART_COUNT", 0) > 0

    def requeue(self) -> None:
        """Run `scontrol requeue`."""
        assert self.job is not None
        command = ["scontrol", "requeue", self.job]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TrainingError(f"The run is saved, but `{' '.join(command)}` failed: {error}. {_BY_HAND}") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise TrainingError(
                f"The run is saved, but `{' '.join(command)}` ended with {done.returncode}: {said}. {_BY_HAND}"
            )

    def _is_script(self) -> bool:
        """Whether this is the job's script: sbatch marks it, and what srun starts in it has a step."""
        stepped = "SLURM_STEP_ID" in os.environ or "SLURM_STEPID" in os.environ
        return os.environ.get("ENVIRONMENT") == "BATCH" and not stepped


_BY_HAND = "Submit the job again, with ckpt_path='last'."


def first_machine(machines: str) -> str:
    """Return the first machine of a list as SLURM writes it, such as `node[03-05,07],other`.

    Raises:
        ConfigError: it is no such list.
    """
    first = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", machines)
    if first is None:
        raise ConfigError(f"SLURM's list of machines is {machines!r}: set MASTER_ADDR to the first one.")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0])
