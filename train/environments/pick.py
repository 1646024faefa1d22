"""Which environment this process was started in."""

from __future__ import annotations

import logging
import os

import torch.distributed as dist

from shipline.errors import ConfigError
from shipline.plugins import BUILT_IN, known, load
from shipline.train.environments.base import ClusterEnvironment, number

logger = logging.getLogger(__name__)


class ExistingGroup(ClusterEnvironment):
    """A process group of PyTorch's that somebody else has made: the user, or Ray Train."""

    name = "torch.distributed"

    @staticmethod
    def detect() -> bool:
        """Whether there is one."""
        return dist.is_available() and dist.is_initialized()

    def world_size(self) -> int:
        """The group's."""
        return dist.get_world_size()

    def global_rank(self) -> int:
        """The group's."""
        return dist.get_rank()

    def local_rank(self) -> int:
        """What LOCAL_RANK or SLURM_LOCALID says; where nobody does, all are taken to be on one machine."""
        return number("LOCAL_RANK", number("SLURM_LOCALID", self.global_rank()))

    def local_world_size(self) -> int | None:
        """What LOCAL_WORLD_SIZE says, if it is set."""
        return number("LOCAL_WORLD_SIZE", 0) or None

    def node_rank(self) -> int:
        """What NODE_RANK, GROUP_RANK or SLURM_NODEID says."""
        return number("NODE_RANK", number("GROUP_RANK", number("SLURM_NODEID", super().node_rank())))

    @property
    def main_address(self) -> str:
        """What MASTER_ADDR says; the group has met already."""
        return os.environ.get("MASTER_ADDR", "")

    @property
    def main_port(self) -> int:
        """What MASTER_PORT says; the group has met already."""
        return number("MASTER_PORT", 0)


def pick_environment(own: ClusterEnvironment | None = None) -> ClusterEnvironment | None:
    """Return what has started this process together with others, or with a queue; None where nobody has.

    A process group that is there goes first, then one that the user gives, then those of other packages, then ours.

    Raises:
        ConfigError: what it says of this process's place cannot be.
    """
    found = ExistingGroup() if ExistingGroup.detect() else own
    if found is None:
        names = [name for name in known("environment") if name not in BUILT_IN["environment"]]
        found = next(filter(None, map(_detected, [*names, *BUILT_IN["environment"]])), None)
    if found is not None and not 0 <= found.global_rank() < found.world_size():
        raise ConfigError(
            f"{found.name} says that this is process {found.global_rank()} of {found.world_size()}: they are counted "
            "from 0. Look at the environment variables that it sets."
        )
    return found


def _detected(name: str) -> ClusterEnvironment | None:
    """One that has started this process; another package's that is broken must not stop those who do not use it."""
    try:
        cls = load("environment", name)
        return cls() if cls.detect() else None
    except Exception as error:
        if name in BUILT_IN["environment"]:
            raise
        logger.warning("The cluster environment %r is passed over: %s", name, error or type(error).__name__)
        return None
