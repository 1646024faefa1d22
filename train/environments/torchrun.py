"""torchrun, and what speaks its variables: `python -m torch.distributed.run`."""

from __future__ import annotations

import os
from datetime import timedelta

from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from shipline.train.environments.base import ClusterEnvironment, number


class TorchElasticEnvironment(ClusterEnvironment):
    """Started by torchrun, whose agent may hold the store.

    Source: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    """

    name = "torchrun"

    @staticmethod
    def detect() -> bool:
        """Whether torchrun's variables are set."""
        return "TORCHELASTIC_RUN_ID" in os.environ

    def world_size(self) -> int:
        """What WORLD_SIZE says."""
        return number("WORLD_SIZE")

    def global_rank(self) -> int:
        """What RANK says."""
        return number("RANK")

    def local_rank(self) -> int:
        """What LOCAL_RANK says."""
        return number("LOCAL_RANK")

    def local_world_size(self) -> int | None:
        """What LOCAL_WORLD_SIZE says."""
        return number("LOCAL_WORLD_SIZE")

    def node_rank(self) -> int:
        """What GROUP_RANK says."""
        return number("GROUP_RANK")

    @property
    def main_address(self) -> str:
        """What MASTER_ADDR says."""
        return os.environ["MASTER_ADDR"]

    @property
    def main_port(self) -> int:
        """What MASTER_PORT says."""
        return number("MASTER_PORT")

    def store(self, timeout: timedelta) -> Store:
        """The agent's store, with names of its own for each time that it starts the processes."""
        found = next(rendezvous("env://", self.global_rank(), self.world_size(), timeout=timeout))
        store: Store = found[0]
        return store
