"""Calls on the workers of a Ray cluster, in the form of Python's own executors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, ParamSpec, Self, TypeVar

from shipline.errors import ConfigError, MissingExtraError

try:
    import ray
    import ray.cloudpickle
except ModuleNotFoundError as error:
    raise MissingExtraError("RayExecutor needs Ray. Run: pip install 'shipline[ray]'") from error

from shipline.train.launch.cluster import connected
from shipline.train.launch.options import RayCluster

_TIDY_S = 10.0
_KEPT = 16  # arguments that later calls may share

P = ParamSpec("P")
T = TypeVar("T")


class RayExecutor(Executor):
    """Makes each call in a worker process, on whatever machine of the cluster has room; a context manager.

    Functions and arguments travel by cloudpickle. An argument that many calls share, such as a module, travels once.

    Args:
        workers: how many calls at once a cluster of its own makes room for; one that is there (connected to, or named
            by RAY_ADDRESS) takes what it has resources for.
        cluster: what a worker reserves, and what its process has of yours.
    """

    def __init__(self, workers: int = 2, cluster: RayCluster | None = None) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ConfigError(f"RayExecutor has workers={workers!r}; set a whole number from 1 on.")
        self._workers, self._cluster = workers, cluster or RayCluster()
        self._open = contextlib.ExitStack()
        self._call: Any = None
        self._sent: dict[int, tuple[Any, Any]] = {}
        self._pending: dict[Future[Any], Any] = {}
        self._given_up: list[Any] = []

    def __enter__(self) -> Self:
        self._open.enter_context(connected(self._cluster, self._workers))
        resources = {"CPU": 1.0, **self._cluster.resources_per_worker}
        self._call = ray.remote(_call).options(
            num_cpus=resources.pop("CPU"),
            num_gpus=resources.pop("GPU", 0),
            memory=resources.pop("memory", None),
            resources=resources,
            accelerator_type=self._cluster.accelerator_type,
            scheduling_strategy="SPREAD" if self._cluster.placement.endswith("SPREAD") else "DEFAULT",
            runtime_env=self._cluster.runtime_env or None,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Make the call in a worker; its errors come back as they are, and a lost worker as Ray's own."""
        if self._call is None:
            raise RuntimeError("This executor is not open: use it as a context manager.")
        sent = [self._send(each) for each in (fn, *args)]
        reference = self._call.remote(*sent, **{name: self._send(value) for name, value in kwargs.items()})
        future: Future[T] = Future()
        self._pending[future] = reference
        future.add_done_callback(self._forget)
        reference.future().add_done_callback(lambda found: _settle(future, found))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; what has not ended is given up."""
        for future in list(self._pending):
            future.cancel()
        if self._given_up:  # workers are interrupted, and tidy up
            ray.wait(self._given_up, num_returns=len(self._given_up), timeout=_TIDY_S)
        self._call, self._sent, self._given_up = None, {}, []
        self._open.close()

    def _send(self, value: Any) -> Any:
        """Send a value, once for all calls of late that share it."""
        sent = self._sent.pop(id(value), None) or (value, ray.put(ray.cloudpickle.dumps(value)))
        self._sent[id(value)] = sent
        if len(self._sent) > _KEPT:  # calls that wait have references of their own
            del self._sent[next(iter(self._sent))]
        return sent[1]

    def _forget(self, future: Future[Any]) -> None:
        reference = self._pending.pop(future, None)
        if future.cancelled() and reference is not None and ray.is_initialized():
            ray.cancel(reference)
            self._given_up.append(reference)


def _call(*payload: bytes, **named: bytes) -> bytes:
    """Run in a worker: `payload` is the function, then its arguments."""
    try:
        function, *arguments = map(ray.cloudpickle.loads, payload)
        found = function(*arguments, **{name: ray.cloudpickle.loads(value) for name, value in named.items()})
        return bytes(ray.cloudpickle.dumps((found, None)))
    except Exception as error:
        return bytes(ray.cloudpickle.dumps((None, error)))


def _settle(future: Future[Any], found: Future[bytes]) -> None:
    """Give a call's outcome to who waits for it."""
    with contextlib.suppress(CancelledError):
        if not future.set_running_or_notify_cancel():
            return
        if (lost := found.exception()) is not None:
            future.set_exception(lost)
            return
        answer, error = ray.cloudpickle.loads(found.result())
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)
