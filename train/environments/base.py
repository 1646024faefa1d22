"""What every cluster environment is: what started this process together with others, and told each its place."""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from datetime import timedelta

from torch._C._distributed_c10d import Store, TCPStore

from shipline.errors import ConfigError
from shipline.train.environments.network import listening


class ClusterEnvironment(ABC):
    """Which of the run's processes this one is, and where the first of them is found.

    Names are PyTorch Lightning's; a new one is a class like this, found by its name among the plug-ins.
    """

    #: What people call it.
    name = "the cluster"
    #: The signal that asks for a checkpoint and another place in the queue; None: there is no queue.
    requeue_signal: int | None = None

    @staticmethod
    @abstractmethod
    def detect() -> bool:
        """Whether it has started this process."""

    @abstractmethod
    def world_size(self) -> int:
        """Return how many processes it has started together."""

    @abstractmethod
    def global_rank(self) -> int:
        """Return the number of this process among all, from 0."""

    @abstractmethod
    def local_rank(self) -> int:
        """Return the number of this process on its machine, from 0."""

    @property
    @abstractmethod
    def main_address(self) -> str:
        """The machine of the first process, as the others reach it."""

    @property
    @abstractmethod
    def main_port(self) -> int:
        """The port at which the first process waits for the others."""

    def local_world_size(self) -> int | None:
        """Return how many of the processes are on this machine, None where that is not known."""
        return None

    def node_rank(self) -> int:
        """Return the number of this machine, from 0."""
        each = self.local_world_size()
        return self.global_rank() // each if each else 0

    def store(self, timeout: timedelta) -> Store:
        """Return the store at which the processes meet; the first of them holds it."""
        host, port, size, first = self.main_address, self.main_port, self.world_size(), self.global_rank() == 0
        held = listening(host, port) if first else None
        return TCPStore(host, port, size, first, timeout, master_listen_fd=held)

    @property
    def job(self) -> str | None:
        """What its queue calls this job: the same when it starts again; None where there is no queue."""
        return None

    def restarted(self) -> bool:
        """Whether the job has run before, and is to go on."""
        return False

    def requeue(self) -> None:  # noqa: B027 -- there may be no queue
        """Give the job another place in the queue; called by the first process once the run is saved.

        Raises:
            TrainingError: the queue refuses it.
        """


def number(name: str, default: int | None = None) -> int:
    """Return the whole number that an environment variable holds.

    Raises:
        ConfigError: it holds something else, or nothing where there is no default.
    """
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdecimal():
        found = "is not set" if text is None else f"is {text!r}"
        raise ConfigError(f"The environment variable {name} {found}: it must be a whole number from 0 on.")
    return int(text)


def port_of(job: str) -> int:
    """Return the port that all processes of a job expect the first of them at: below those given out at random."""
    return 10_000 + zlib.crc32(job.encode()) % 20_000
