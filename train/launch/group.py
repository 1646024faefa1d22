"""How workers on a Ray cluster find each other: a process group whose port is open to the cluster's network alone.

PyTorch's own rendezvous listens on every network of the machine, and believes whoever connects.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from torch._C._distributed_c10d import PrefixStore, TCPStore

from shipline.train.environments.network import use_interface

#: Of the first worker: where the others find it, held until they come.
_listening: socket.socket | None = None
_KEY = "shipline"
_ANSWER_S = 300.0  # where a worker first has to import all that it needs


@dataclass
class GroupConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's TorchConfig with the rendezvous of this module."""

    @property
    def backend_cls(self) -> type:
        """What joins the workers when they start, and after each fault."""
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        resources = worker_group.get_resources_per_worker()
        # Objects and flags go over gloo also where gradients go over NCCL: they need not wait for a device.
        backend = backend_config.backend or ("cpu:gloo,cuda:nccl" if resources.get("GPU") else "gloo")
        size, patience = len(worker_group), backend_config.timeout_s
        with beginning(worker_group):
            [(host, port)] = answers([worker_group.execute_single_async(0, listen)])
            on_each(worker_group, _set_torch_distributed_env_vars)
            joined = [
                worker_group.execute_single_async(rank, join, host, port, rank, size, backend, patience)
                for rank in range(size)
            ]
            answers(joined, patience + _ANSWER_S)


@contextlib.contextmanager
def beginning(worker_group: Any) -> Iterator[None]:
    """Give back the place of workers that cannot begin: Ray Train does so only for those that do not count as begun."""
    try:
        yield
    except BaseException:
        worker_group._clear_state()  # noqa: SLF001 -- has no public name
        raise


def on_each(worker_group: Any, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what a function returns on each worker, in order of rank."""
    return answers(worker_group.execute_async(function, *arguments))


def answers(calls: list[Any], patience: float = _ANSWER_S) -> list[Any]:
    """Return what workers answer, one call each.

    One that is gone ends it at once, since the others may wait for it; one that is silent is as good as gone.

    Raises:
        RayActorError: one is gone.
        WorkerGroupStartupFailedError: some have not answered in time.
    """
    end, silent = time.monotonic() + patience, calls
    while silent:
        answered, silent = ray.wait(silent, timeout=max(0.0, end - time.monotonic()))
        if not answered:
            ranks = ", ".join(str(calls.index(call)) for call in silent)
            raise WorkerGroupStartupFailedError(f"Workers {ranks} of {len(calls)} are silent for {patience:g} s.")
        ray.get(answered)
    found: list[Any] = ray.get(calls)
    return found


def listen() -> tuple[str, int]:
    """Take a free port of this node's address in the cluster; return both."""
    global _listening
    host = ray.util.get_node_ip_address()
    _listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    return host, _listening.getsockname()[1]


def join(host: str, port: int, rank: int, size: int, backend: str, timeout_s: float) -> None:
    """Join the process group as worker number `rank`."""
    global _listening
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    timeout, held = timedelta(seconds=timeout_s), None
    if rank == 0:
        assert _listening is not None
        held, _listening = _listening.detach(), None
    store = TCPStore(host, port, size, rank == 0, timeout, master_listen_fd=held)
    use_interface(host, alone=True)
    dist.init_process_group(backend, store=PrefixStore(_KEY, store), rank=rank, world_size=size, timeout=timeout)
