"""Rows of a `ray.data.Dataset` for workers: in one order, and each row for one of them."""

from __future__ import annotations

import warnings
from typing import Any

import ray
import ray.cloudpickle
from ray._private.state import state as cluster_state

from shipline.errors import ConfigError


def ordered(dataset: Any) -> Any:
    """Return the dataset with its rows in the same order each time.

    Raises:
        ConfigError: the workers have all CPUs, and Ray would wait for ever for one to read with.
    """
    _check_room()
    own = dataset.copy(dataset, _deep_copy=True)  # the user's keeps its options
    own.context.execution_options.preserve_order = True
    return own


def split(dataset: Any, workers: int, batch_size: int | None) -> tuple[str, bytes]:
    """Return the shares of so many workers, to be sent to them.

    Args:
        dataset: of all rows.
        workers: that share them.
        batch_size: give the first worker the first so many rows, the second one the next, and so on in turn, to the
            last row; None: equally many to each, in no such order.
    """
    own = ordered(dataset)
    if batch_size is not None:
        # Ray gives each block to whom it has given the fewest rows so far.
        own = own.repartition(target_num_rows_per_block=batch_size, strict=True)
    shares = ray.cloudpickle.dumps(own.streaming_split(workers, equal=batch_size is None))
    return ray.get_runtime_context().get_node_id(), bytes(shares)


def taken(shares: tuple[str, bytes], rank: int) -> Any:
    """Return a worker's share of those that `split` has returned.

    Raises:
        ConfigError: this process is not connected to the cluster that they are on.
    """
    node, content = shares
    if not ray.is_initialized() or node not in {each["NodeID"] for each in ray.nodes()}:
        raise ConfigError(
            "The workers of this run, which something else than Ray has started, are not all connected to one cluster, "
            "and share a dataset of Ray: let each call ray.init with the address of the same one, or set RAY_ADDRESS."
        )
    return ray.cloudpickle.loads(content)[rank]


def _check_room() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = ray.util.get_current_placement_group()
    workers = sum(bundle.get("CPU", 0) for bundle in group.bundle_specs) if group is not None else 0
    could = cluster_state.get_max_resources_from_cluster_config() or {}  # of a cluster that grows
    cpus = max(ray.cluster_resources().get("CPU", 0), could.get("CPU", 0))
    if cpus - workers < 1:
        raise ConfigError(
            f"The cluster has {cpus:g} CPUs, of which the workers of this run have {workers:g}, and Ray Data needs one "
            "to read rows with: take fewer workers, or a larger cluster; of one that the run starts itself, "
            "RayCluster(data_cpus=1)."
        )
