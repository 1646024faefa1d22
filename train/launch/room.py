"""Whether the cluster has room for the workers, and what is said where it has not."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import ray
from ray._private.state import state as cluster_state

from shipline.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer

_MOST = 4  # kinds of nodes that a message names


def check_room(trainer: Trainer, resources: dict[str, float]) -> None:
    """Refuse what the cluster does not have, and will not get: Ray would wait for it for ever.

    Raises:
        ConfigError: the message says what was asked for, and what there is.
    """
    could = cluster_state.get_max_resources_from_cluster_config() or {}  # of a cluster that grows
    have = ray.cluster_resources()
    workers = _least(trainer)
    for name, each in resources.items():
        room = max(have.get(name, 0), could.get(name, 0))
        if each and room < workers * each:
            asked = _asked(trainer, {name: each})
            raise ConfigError(f"{asked}, but the cluster has {room:g}{_of_all(name, room, each)}")
    kind = trainer.cluster.accelerator_type
    if kind is not None and not could and f"accelerator_type:{kind}" not in have:
        known = sorted(name.partition(":")[2] for name in have if name.startswith("accelerator_type:"))
        raise ConfigError(
            f"RayCluster has accelerator_type={kind!r}, but the cluster has {', '.join(known) or 'no accelerator'}: "
            "set one that it has, or leave it out."
        )
    if not could and (fit := _places(trainer.cluster.placement, resources)) < workers:
        raise ConfigError(
            f"{_asked(trainer, resources)} of one node, but with placement={trainer.cluster.placement!r} there is room "
            f"for {fit} on {_nodes(resources)}: set fewer workers, smaller resources_per_worker, or another placement."
        )


def no_room(trainer: Trainer, resources: dict[str, float]) -> TrainingError:
    """Return what is said when the cluster would have room, but others have taken it."""
    free = ray.available_resources()
    listed = ", ".join(f"{free.get(name, 0):g} {name}" for name, each in resources.items() if each)
    return TrainingError(
        f"{_asked(trainer, resources)}, and for {trainer.cluster.wait_s:g} s the cluster has had no room for them: it "
        f"has {_nodes(resources)}, of which {listed} are free now. Wait for what else runs there, add nodes, set "
        "workers=(least, most), or a longer RayCluster(wait_s=...)."
    )


def _least(trainer: Trainer) -> int:
    return trainer.worker_range[0] if trainer.worker_range else trainer.workers


def _asked(trainer: Trainer, resources: dict[str, float]) -> str:
    least = "" if trainer.worker_range is None else " at least"
    return f"Trainer has workers={_least(trainer)}{least}, and each takes {_amounts(resources)}"


def _of_all(name: str, room: float, each: float) -> str:
    """What to do where the cluster as a whole has too little of something."""
    if room >= each:
        return f": set workers to {int(room // each)} or less."
    if name == "GPU":
        return " of them: set accelerator='cpu', or start a cluster with GPUs."
    return f" of it: set a smaller RayCluster(resources_per_worker={{{name!r}: ...}}), or add nodes."


def _places(placement: str, resources: dict[str, float]) -> int:
    """How many workers an idle cluster takes; each has to fit a node."""
    needs = {name: each for name, each in resources.items() if each}
    each_node = [
        min((int(node["Resources"].get(name, 0) // each) for name, each in needs.items()), default=10**6)
        for node in _alive()
    ]
    if placement == "STRICT_SPREAD":
        return sum(places > 0 for places in each_node)
    return max(each_node, default=0) if placement == "STRICT_PACK" else sum(each_node)


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _nodes(resources: dict[str, float]) -> str:
    """The nodes by what they have of what is asked for: 2 nodes with 8 CPU, 1 GPU."""
    kinds = Counter(_amounts({name: node["Resources"].get(name, 0) for name in resources}) for node in _alive())
    named = [f"{count} node{'s' if count > 1 else ''} with {has}" for has, count in kinds.most_common(_MOST)]
    return "; ".join(named) + ("; and others" if len(kinds) > _MOST else "")


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "nothing of it"
