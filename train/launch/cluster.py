"""The cluster that a run uses: one that is there, and lets nobody in without its token, or one of its own."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.util.client
from ray._private import ray_constants
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR

from shipline.errors import ConfigError, TrainingError
from shipline.train.launch.options import RayCluster

logger = logging.getLogger(__name__)

# Of a cluster that we start: nothing is reported to anybody, only holders of its token may use it, from this machine
# alone, and its own log lines do not drown the run's. What the user set stays. Ray reads the token once in a process.
_OWN_CLUSTER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this machine away from us
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",  # of one machine: all of its servers listen on the loopback
}
_TRAIN = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # with it, what workers print comes twice
    "RAY_TRAIN_METRICS_ENABLED": "0",
}

_PROBE = """
import os, sys
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1])
except ray.exceptions.AuthenticationError:
    sys.exit(3)
"""
_ELASTIC_START_S = 10.0  # room for so many workers may be known from before a node was lost
_REFUSED, _PROBE_S, _CONNECT_S = 3, 60.0, 3.0


@dataclass(frozen=True)
class _Kept:
    """A cluster that `keep_warm` has left: what ends it, and what it was started with."""

    stack: contextlib.ExitStack
    cpus: int
    runtime_env: dict[str, Any]

    def serves(self, options: RayCluster, workers: int) -> bool:
        """Whether a run finds there what it needs; directories were copied when it started, and may have changed."""
        copied = {"working_dir", "py_modules"} & options.runtime_env.keys()
        return self.runtime_env == options.runtime_env and not copied and self.cpus >= _cpus(options, workers)


_warm: _Kept | None = None


@contextlib.contextmanager
def connected(options: RayCluster, workers: int, *, elastic: bool = False) -> Iterator[None]:
    """Use the cluster that is there (connected to, or named by RAY_ADDRESS), or one of our own for the time of the run.

    Raises:
        ConfigError: it lets in everybody, or is reached through Ray Client.
    """
    address = os.environ.get("RAY_ADDRESS")
    start_s = min(_ELASTIC_START_S, options.wait_s) if elastic else options.wait_s
    with _environment(_TRAIN | {WORKER_GROUP_START_TIMEOUT_S_ENV_VAR: str(start_s)} | _interval(workers)):
        if _warm is not None and not _warm.serves(options, workers):
            close_warm()
        if ray.is_initialized():
            if ray.util.client.ray.is_connected():
                raise _through_client()
            if _warm is None:  # ours has a token
                _refuse_open(ray.get_runtime_context().gcs_address, options)
            yield
        elif address:
            if address.startswith("ray://"):
                raise _through_client()
            with _joined(address, options):
                yield
        elif options.keep_warm:
            _keep(options, workers)
            yield
        else:
            with _started(options, workers):
                yield


def close_warm() -> None:
    """End the cluster that `keep_warm` has left."""
    global _warm
    kept, _warm = _warm, None
    if kept is not None:
        kept.stack.close()


def is_kept() -> bool:
    """Whether this process has a cluster that `keep_warm` has left."""
    return _warm is not None


def head_answers() -> bool:
    """Whether the cluster's head takes connections."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError:
        return False
    return True


def _keep(options: RayCluster, workers: int) -> None:
    global _warm
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)
        stack.enter_context(_loopback())
        with _environment(_OWN_CLUSTER):
            _start(options, workers)
        _warm = _Kept(stack.pop_all(), _cpus(options, workers), dict(options.runtime_env))
    atexit.register(close_warm)


@contextlib.contextmanager
def _started(options: RayCluster, workers: int) -> Iterator[None]:
    with _environment(_OWN_CLUSTER), _loopback():
        try:
            _start(options, workers)
            yield
        finally:
            ray.shutdown()


def _start(options: RayCluster, workers: int) -> None:
    ray.init(
        "local",  # a plain init() would join any cluster that runs on this machine
        num_cpus=_cpus(options, workers),
        runtime_env=options.runtime_env or None,
        include_dashboard=False,
        logging_level=logging.ERROR,
        logging_config=ray.LoggingConfig(log_level="ERROR"),
    )


def _cpus(options: RayCluster, workers: int) -> int:
    """What Ray is told that this machine has: enough for all workers and readers, who then share what there is."""
    wanted = math.ceil(workers * options.resources_per_worker.get("CPU", 1)) + options.data_cpus
    return max(wanted, os.cpu_count() or 1)


@contextlib.contextmanager
def _joined(address: str, options: RayCluster) -> Iterator[None]:
    with _environment({}):
        try:
            try:
                ray.init(address, logging_level=logging.ERROR, runtime_env=options.runtime_env or None)
            except ConnectionError as error:
                raise ConfigError(
                    f"RAY_ADDRESS is {address!r}, and no cluster answers there: correct it, or unset it to train on "
                    "this machine."
                ) from error
            except ray.exceptions.AuthenticationError as error:
                raise ConfigError(
                    f"The cluster at {address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                    "RAY_AUTH_TOKEN_PATH."
                ) from error
            _refuse_open(ray.get_runtime_context().gcs_address, options)
            yield
        finally:
            ray.shutdown()


def _refuse_open(address: str, options: RayCluster) -> None:
    """Ask the cluster as a stranger would: who reaches an open one runs code as its owner."""
    if options.allow_open:
        return
    command = [sys.executable, "-c", _PROBE, address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise TrainingError(f"The cluster at {address} has not answered for {_PROBE_S:.0f} s.") from error
    if done.returncode not in (0, _REFUSED):
        raise TrainingError(f"The cluster at {address} could not be asked for its token: {done.stderr.decode()[-500:]}")
    if done.returncode == 0:
        raise ConfigError(
            f"The cluster at {address} lets in everybody who reaches it, without a token, and runs their code: start "
            "it with RAY_AUTH_MODE=token, or allow it by name: Trainer(cluster=RayCluster(allow_open=True)), "
            "--trainer.cluster.allow_open true."
        )


def _through_client() -> ConfigError:
    return ConfigError(
        "RAY_ADDRESS is a ray:// address, and Ray Train does not run through Ray Client: submit the run to the cluster "
        "(shipline train ... --submit http://head:8265), or start it on a machine of the cluster with "
        "RAY_ADDRESS=auto."
    )


def _interval(workers: int) -> dict[str, str]:
    """How often the controller asks the workers how they are: few of them often, since a run's end waits for it."""
    return {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": f"{min(2.0, max(0.2, workers / 64)):.2f}"}


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let this process, too, take the loopback for its address; its children read that from the environment."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set what is not set, and leave the environment as it was; ray.init changes some of it, too.

    It is never empty meanwhile: other threads read it.
    """
    before = dict(os.environ)
    for name, value in values.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})
