"""The process group of the workers: joined where they were started together, left when the process ends."""

from __future__ import annotations

import atexit
import gc
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported later, its defaults would hold the group for ever
from torch._C._distributed_c10d import PrefixStore, Store

from shipline.errors import TrainingError
from shipline.train.environments import ClusterEnvironment, pick_environment
from shipline.train.environments.network import use_interface
from shipline.train.seed import seed_everything

#: How long workers wait for each other to come: on a cluster, images may have to be pulled first.
PATIENCE = timedelta(minutes=30)

_store: Store | None = None
_environment: ClusterEnvironment | None = None
_joined = 0


def join(found: ClusterEnvironment, device: torch.device | None = None, patience: timedelta = PATIENCE) -> None:
    """Make the process group of all that `found` has started, unless there is a group already.

    It stays until the process ends, or `leave`: what comes after a fit may use it.

    Args:
        found: who has started the workers.
        device: on which this worker computes; default: the CPU.
        patience: how long to wait for the others.

    Raises:
        TrainingError: they have not come.
    """
    global _store, _environment, _joined
    if dist.is_initialized():
        return
    rank, size = found.global_rank(), found.world_size()
    try:
        _store = found.store(patience) if _store is None else _store
        # Each group has names of its own: those that an earlier one has left behind lead to closed doors.
        use_interface(found.main_address, alone=found.local_world_size() == size)
        own = PrefixStore(f"shipline/{_joined}", _store)
        plain = device is None or device.type == "cpu"
        dist.init_process_group(
            _backend(device), store=own, rank=rank, world_size=size, device_id=None if plain else device
        )
    except (dist.DistError, RuntimeError, OSError) as error:
        raise TrainingError(
            f"Worker {rank} of {size}, started by {found.name}, could not meet the others at {found.main_address}:"
            f"{found.main_port}: {error}. Look whether all were started, and whether that port is free on the first "
            "worker's machine and open to the others; MASTER_ADDR and MASTER_PORT choose another."
        ) from error
    if not _joined:
        atexit.register(leave)
    _environment, _joined = found, _joined + 1


def leave() -> None:
    """End the process group, if `join` has made it; who waits for this worker in it hears so when the process ends."""
    global _environment
    if _environment is None:
        return
    _environment = None
    gc.collect()  # what still holds the group would otherwise end its threads when nobody can any more
    if dist.is_initialized():
        dist.destroy_process_group()


def first_failure(text: str, *, echo: bool) -> str | None:
    """Tell the others why this worker has failed, and return what the first of them has told: perhaps this.

    Args:
        text: what has happened here.
        echo: whether that is only that another one is gone.
    """
    if _environment is None or _store is None:
        return None
    key = f"shipline/{_joined - 1}/failure"
    try:
        if echo and not _store.check([key]):
            return None
        return bytes(_store.compare_set(key, "", text)).decode()
    except (dist.DistError, RuntimeError):  # the first worker is gone, and the store with it
        return None


def environment(own: ClusterEnvironment | None = None) -> ClusterEnvironment | None:
    """Return what has started this process together with others, or the user's `own`; None where it is alone."""
    return pick_environment(own) if _environment is None else own or _environment


def seed_worker(seed: int | None, rank: int) -> None:
    """Seed every generator alike on all workers, but torch's: dropout and augmentation differ between them."""
    if seed is not None:
        seed_everything(seed)
        torch.manual_seed(seed + rank)


def _backend(device: torch.device | None) -> str:
    """For workers that compute elsewhere also values on the CPU are exchanged, by gloo."""
    if device is None or device.type == "cpu":
        return "gloo"
    return f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
