"""What decides, in Ray Train's controller, whether a run goes on after a fault, and tells the workers what has been."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_get
from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.callbacks.working_dir_setup import WorkingDirectorySetupCallback
from ray.train.v2._internal.constants import WORKER_GROUP_START_TIMEOUT_S_ENV_VAR
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, ResizingState, RestartingState
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.exceptions import ControllerError

from shipline.train.launch import worker
from shipline.train.launch.faults import Fault, Where, WorkerError, WorkerLostError, fault_of, is_preempted, reason_of
from shipline.train.launch.group import beginning, on_each
from shipline.train.launch.options import RayCluster

_LATE_S = 10.0  # so long after its neighbours a machine's death may be known
_LOOK_S = 0.5
#: In the controller: the driver does not wait for the run any more.
_given_up = threading.Event()


class Budgets(FailurePolicy):  # type: ignore[misc]
    """Each cause has a number of faults after which the run is started again; the next one ends it."""

    def __init__(self, options: RayCluster, start_s: float) -> None:
        super().__init__(FailureConfig())
        self._start_s, self._wait_s, self._waited_s = start_s, options.wait_s, 0.0
        self._limits = {
            "code": options.max_failures, "loss": options.max_losses, "preemption": options.max_preemptions,
        }  # fmt: skip
        self._spent: Counter[str] = Counter()

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        """Return whether to start again."""
        if _given_up.is_set():
            return FailureDecision.RAISE
        cause: str = "loss"
        if isinstance(training_failed_error, ControllerError):
            failure = training_failed_error.controller_failure
            if isinstance(failure, WorkerGroupStartupTimeoutError):  # of a size for which there is no room any more
                self._waited_s += self._start_s
                return FailureDecision.RETRY if self._waited_s < self._wait_s else FailureDecision.RAISE
            if not isinstance(failure, WorkerGroupStartupFailedError):
                return FailureDecision.RAISE
        else:
            cause = fault_of(training_failed_error).cause
        self._spent[cause] += 1
        self._waited_s = 0.0
        within = self._limits[cause] == -1 or self._spent[cause] <= self._limits[cause]
        return FailureDecision.RETRY if within else FailureDecision.RAISE


class End(ControllerCallback):  # type: ignore[misc]
    """Ends the controller, and the workers with it, when the driver has given up: on a cluster that stays, nobody does.

    Args:
        key: where the driver says so.
    """

    def __init__(self, key: str) -> None:
        self._key = key

    def after_controller_start(self, train_run_context: Any) -> None:
        """Begin to look."""
        controller = ray.get_runtime_context().current_actor
        threading.Thread(target=self._look, args=(controller,), name="shipline-end", daemon=True).start()

    def _look(self, controller: Any) -> None:
        while _internal_kv_get(self._key.encode(), namespace=worker.KV_NAMESPACE) is None:
            time.sleep(_LOOK_S)
        _given_up.set()
        controller.abort.remote()  # comes when the controller has done what it does now, all of which ends


class Watch(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]
    """Looks after who is gone when others fail, and tells new workers what their predecessors died of."""

    def __init__(self, options: RayCluster) -> None:
        self._grace_s = options.grace_s
        self._group: Any = None
        self._places: dict[int, Where] = {}
        self._history: list[dict[str, Any]] = []
        self._begun = self._resizing = False

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Tell the workers which attempt this is."""
        workers = worker_group.get_workers()
        places = {
            rank: Where(rank, len(workers), each.metadata.node_ip, each.metadata.pid)
            for rank, each in enumerate(workers)
        }
        with beginning(worker_group):
            on_each(worker_group, worker.begin, self._begun, self._history)
        self._group, self._places = worker_group, places
        self._begun, self._resizing = True, False

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Before anything is decided, find out who is gone: those who miss them speak first."""
        statuses = worker_group_status.worker_statuses
        if not any(status.error for status in statuses.values()):
            return
        errors = worker_group_status.errors
        echoes = all(isinstance(e, WorkerError) and e.echo for e in errors.values())
        if echoes:
            for rank, death in self._deaths([r for r, status in statuses.items() if status.error is None]).items():
                statuses[rank].error = death
        step = self._step(statuses)
        for rank, status in statuses.items():
            gone = isinstance(status.error, WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError)
            if gone and not is_preempted(status.error):
                inner = getattr(status.error, "health_check_failure", status.error)
                status.error = WorkerLostError(self._places[rank], reason_of(inner), step)

    def _step(self, statuses: dict[int, Any]) -> int:
        """Return the step that those who live are at; -1 where they do not say so soon."""
        steps = [error.step for status in statuses.values() if isinstance(error := _own(status.error), WorkerError)]
        living = [rank for rank, status in statuses.items() if status.error is None]
        if living and not steps:
            actors = self._group.get_workers()
            answered, _ = ray.wait([actors[rank].actor.execute.remote(worker.step) for rank in living], timeout=1.0)
            with contextlib.suppress(ray.exceptions.RayError):
                steps += ray.get(answered)
        return max(steps, default=-1)

    def _deaths(self, ranks: list[int]) -> dict[int, Exception]:
        """Return what tells that workers are gone; those that live answer at once."""
        actors = self._group.get_workers()
        probes = {actors[rank].actor.get_metadata.remote(): rank for rank in ranks}
        answered, _ = ray.wait(list(probes), num_returns=len(probes), timeout=_LATE_S) if probes else ([], [])
        deaths: dict[int, Exception] = {}
        for probe in answered:
            try:
                ray.get(probe)
            except ray.exceptions.RayActorError as error:
                deaths[probes[probe]] = WorkerHealthCheckFailedError("gone", error)
        return deaths

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Keep what made the run start again."""
        if isinstance(current_state, RestartingState | ReschedulingState):
            error = current_state.training_failed_error
            if not isinstance(error, ControllerError):
                self._note(fault_of(error))
            elif isinstance(error.controller_failure, WorkerGroupStartupFailedError):
                self._note(Fault("loss", "A worker was lost as the workers began."))
        elif isinstance(current_state, ResizingState):
            self._resizing = True
            count = current_state.scaling_decision.num_workers
            self._note(Fault("preemption", f"There is room for {count} workers, and there were {len(self._places)}."))

    def _note(self, fault: Fault) -> None:
        entry = {"cause": fault.cause, "text": fault.text, "step": fault.step, "at": time.time()}
        self._history.append({**entry, "workers": len(self._places)})

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Let the workers save before they are replaced by more, or fewer."""
        resizing, self._resizing = self._resizing, False
        # Where they have failed, or the others that were to come did not, there is nobody to tell.
        if not resizing or not self._group.has_started():
            return
        end = time.monotonic() + self._grace_s
        ray.wait(told := self._group.execute_async(worker.take_away), num_returns=len(told), timeout=self._grace_s)
        while time.monotonic() < end and not self._group.poll_status(timeout=1.0).finished:
            time.sleep(0.2)


def _own(error: Any) -> Any:
    """What a worker raised, without what Ray wraps around it."""
    return getattr(error, "_base_exc", error)


class Training(TorchTrainer):  # type: ignore[misc]
    """Ray Train's TorchTrainer with budgets by cause."""

    def __init__(self, *arguments: Any, options: RayCluster, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self._options = options

    def _create_default_callbacks(self) -> list[Any]:
        # Two start a process that has nothing to do: rows come from loaders, and Ray removes by itself the placement
        # groups of a driver that has ended. One leads workers away from the files that the user's code opens.
        unused = DatasetsCallback | PlacementGroupCleanerCallback | WorkingDirectorySetupCallback
        return [c for c in super()._create_default_callbacks() if not isinstance(c, unused)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        budgets = Budgets(self._options, float(os.environ[WORKER_GROUP_START_TIMEOUT_S_ENV_VAR]))
        return super()._initialize_and_run_controller(**parts | {"failure_policy": budgets})
