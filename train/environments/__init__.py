"""Who started the processes of a run: torchrun, SLURM, MPI, Kubernetes, or the user."""

from shipline.train.environments.base import ClusterEnvironment
from shipline.train.environments.kubernetes import KubernetesEnvironment
from shipline.train.environments.mpi import MPIEnvironment
from shipline.train.environments.pick import pick_environment
from shipline.train.environments.slurm import SLURMEnvironment
from shipline.train.environments.torchrun import TorchElasticEnvironment

__all__ = [
    "ClusterEnvironment",
    "KubernetesEnvironment",
    "MPIEnvironment",
    "SLURMEnvironment",
    "TorchElasticEnvironment",
    "pick_environment",
]
