"""Kubernetes: a PyTorchJob of Kubeflow, a JobSet or an indexed Job, one process a pod; and whoever sets the same."""

from __future__ import annotations

import os

from shipline.train.environments.base import ClusterEnvironment, number

_PORT = 29500  # where PyTorch's own launcher waits


class KubernetesEnvironment(ClusterEnvironment):
    """Started with MASTER_ADDR, WORLD_SIZE and RANK, or in place of RANK the index that an indexed Job gives its pods.

    Source: https://www.kubeflow.org/docs/components/trainer/legacy-v1/user-guides/pytorch/ and
    https://kubernetes.io/docs/concepts/workloads/controllers/job/#completion-mode
    """

    name = "Kubernetes"

    @staticmethod
    def detect() -> bool:
        """Whether these variables are set, by whomever."""
        ranked = "RANK" in os.environ or "JOB_COMPLETION_INDEX" in os.environ
        return ranked and "MASTER_ADDR" in os.environ and "WORLD_SIZE" in os.environ

    def world_size(self) -> int:
        """What WORLD_SIZE says."""
        return number("WORLD_SIZE")

    def global_rank(self) -> int:
        """What RANK says, or JOB_COMPLETION_INDEX."""
        return number("RANK" if "RANK" in os.environ else "JOB_COMPLETION_INDEX")

    def local_rank(self) -> int:
        """What LOCAL_RANK says; a pod has one process, unless somebody sets it."""
        return number("LOCAL_RANK", 0)

    def local_world_size(self) -> int | None:
        """What LOCAL_WORLD_SIZE says; not known where LOCAL_RANK alone is set."""
        return number("LOCAL_WORLD_SIZE", 1) if "LOCAL_WORLD_SIZE" in os.environ or not self.local_rank() else None

    def node_rank(self) -> int:
        """What NODE_RANK or GROUP_RANK says, else the pod's number."""
        return number("NODE_RANK", number("GROUP_RANK", super().node_rank()))

    @property
    def main_address(self) -> str:
        """What MASTER_ADDR says: the service of the first pod."""
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """What MASTER_PORT says."""
        return number("MASTER_PORT", _PORT)
