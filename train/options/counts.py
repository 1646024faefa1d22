"""How many workers train together, as the settings say it and as whoever started the process does."""

from __future__ import annotations

from collections.abc import Sequence

from shipline.errors import ConfigError
from shipline.train.environments import ClusterEnvironment


def workers_of(workers: int | None, devices: int | str | Sequence[int], num_nodes: int) -> int:
    """Return how many workers are set; ConfigError where that is no number, or two settings contradict each other."""
    each = devices_of(devices)
    if each is None:
        return num_nodes if workers is None else workers
    if workers is not None and workers != each * num_nodes:
        raise ConfigError(
            f"Trainer has workers={workers}, and devices={devices!r} on num_nodes={num_nodes}, which makes "
            f"{each * num_nodes}: set one of them."
        )
    return each * num_nodes


def devices_of(devices: int | str | Sequence[int]) -> int | None:
    """Return how many workers are set for each machine; None for "auto" and -1."""
    if isinstance(devices, str):
        text = devices.strip()
        if text not in ("auto", "-1") and not text.isdecimal():
            raise ConfigError(f"Trainer has devices={devices!r}; set a number of workers for each machine, or 'auto'.")
        each = int(text) if text.isdecimal() else None
    elif isinstance(devices, Sequence):
        each = len(devices)
    else:
        each = None if devices == -1 else devices
    if each is not None and (isinstance(each, bool) or each < 1):
        raise ConfigError(f"Trainer has devices={devices!r}; set a number of workers for each machine, or 'auto'.")
    return each


def place_of(
    environment: ClusterEnvironment,
    workers: int | tuple[int, int] | None,
    devices: int | str | Sequence[int],
    num_nodes: int,
) -> tuple[int, int]:
    """Return how many workers and machines there are, of which `environment` has the last word.

    As many as it has started are right where `workers` is a range that they are in.

    Raises:
        ConfigError: the settings contradict it.
    """
    size, each = environment.world_size(), environment.local_world_size()
    nodes = -(-size // each) if each else None
    wanted = devices_of(devices)
    contradicted = None
    least, most = workers if isinstance(workers, tuple | list) else (workers, workers)
    if least is not None and most is not None and not least <= size <= most:
        contradicted = f"workers={workers}"
    elif wanted is not None and wanted * num_nodes != size:
        contradicted = f"devices={devices!r} on num_nodes={num_nodes}"
    elif wanted is None and num_nodes > 1 and nodes is not None and nodes != num_nodes:
        contradicted = f"num_nodes={num_nodes}"
    if contradicted is not None:
        found = f"{size} processes" + ("" if nodes is None else f" on {nodes} machines")
        raise ConfigError(
            f"Trainer has {contradicted}, but {environment.name} has started {found}: leave the setting out, or start "
            "as many."
        )
    return size, nodes or num_nodes
