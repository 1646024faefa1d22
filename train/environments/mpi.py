"""MPI's launchers: mpirun of OpenMPI, mpiexec of MPICH, Intel MPI and MVAPICH. MPI itself is not used."""

from __future__ import annotations

import os

from shipline.errors import ConfigError
from shipline.train.environments.base import ClusterEnvironment, number, port_of

#: What each calls a process's number, how many there are, its number on its machine, and how many are on that.
_NAMES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
#: What the processes of one start, and no others, have alike.
_STARTS = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID")


class MPIEnvironment(ClusterEnvironment):
    """Started by mpirun or mpiexec.

    Its variables do not say where the first process is: on several machines MASTER_ADDR must.
    """

    name = "MPI"

    @staticmethod
    def detect() -> bool:
        """Whether the variables of one of MPI's launchers are set; those of srun --mpi=pmi2 are SLURM's."""
        found = _names()
        if found is None:
            return False
        by_srun = os.environ.get("SLURM_STEP_NUM_TASKS") == os.environ[found[1]] and found[0] == "PMI_RANK"
        return not (by_srun and os.environ.get("SLURM_PROCID") == os.environ["PMI_RANK"])

    def world_size(self) -> int:
        """What the launcher says."""
        return number(self._name(1))

    def global_rank(self) -> int:
        """What the launcher says."""
        return number(self._name(0))

    def local_rank(self) -> int:
        """What the launcher says; where it does not, there is one process on each machine."""
        return number(self._name(2), 0)

    def local_world_size(self) -> int | None:
        """What the launcher says, if it does."""
        return number(self._name(3), 0) or None

    @property
    def main_address(self) -> str:
        """What MASTER_ADDR says; this machine, where all processes are on it.

        Raises:
            ConfigError: there are several machines, and nobody says which is the first.
        """
        if (address := os.environ.get("MASTER_ADDR")) is not None:
            return address
        if self.local_world_size() == self.world_size():
            return "127.0.0.1"
        raise ConfigError(
            f"MPI has started {self.world_size()} processes on several machines, and does not tell them where the "
            "first one is: set MASTER_ADDR to its machine for all, by `mpirun -x MASTER_ADDR=node1` of OpenMPI, or "
            "`mpiexec -genv MASTER_ADDR node1` of MPICH and Intel."
        )

    @property
    def main_port(self) -> int:
        """What MASTER_PORT says; else one that follows from what all processes of this start know."""
        start = next((os.environ[name] for name in _STARTS if name in os.environ), None)
        if start is None:
            start = str(os.getppid()) if self.local_world_size() == self.world_size() else "mpi"
        return number("MASTER_PORT", port_of(start))

    def _name(self, which: int) -> str:
        found = _names()
        assert found is not None
        return found[which]


def _names() -> tuple[str, str, str, str] | None:
    return next((names for names in _NAMES if names[0] in os.environ and names[1] in os.environ), None)
