"""What decides, in Ray Train's controller, whether a run goes on after a fault, and tells the workers what has been."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import Any

import ray
from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, ResizingState, RestartingState
from ray.train.v2._internal.execution.failure_handling import FailureDecision, FailurePolicy
from ray.train.v2.api.exceptions import ControllerError

from shipline.train.launch import worker
from shipline.train.launch.faults import Fault, Where, WorkerError, WorkerLostError, fault_of, is_preempted, reason_of
from shipline.train.launch.options import RayCluster

_LATE_S = 10.0  # so long after its neighbours a machine's death may be known


class Budgets(FailurePolicy):  # type: ignore[misc]
    """Each cause has a number of faults after which the run is started again; the next one ends it."""

    def __init__(self, options: RayCluster) -> None:
        super().__init__(FailureConfig())
        self._limits = {
            "code": options.max_failures, "loss": options.max_losses, "preemption": options.max_preemptions,
        }  # fmt: skip
        self._spent: Counter[str] = Counter()

    def make_decision(self, training_failed_error: Exception) -> FailureDecision:
        """Return whether to start again."""
        cause: str = "loss"
        if isinstance(training_failed_error, ControllerError):
            if not isinstance(training_failed_error.controller_failure, WorkerGroupStartupFailedError):
                return FailureDecision.RAISE
        else:
            cause = fault_of(training_failed_error).cause
        self._spent[cause] += 1
        within = self._limits[cause] == -1 or self._spent[cause] <= self._limits[cause]
        return FailureDecision.RETRY if within else FailureDecision.RAISE


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
        self._group, workers = worker_group, worker_group.get_workers()
        self._places = {
            rank: Where(rank, len(workers), each.metadata.node_ip, each.metadata.pid)
            for rank, each in enumerate(workers)
        }
        worker_group.execute(worker.begin, self._begun, self._history)
        self._begun, self._resizing = True, False

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Before anything is decided, find out who is gone: those who miss them speak first."""
        statuses = worker_group_status.worker_statuses
        if not any(status.error for status in statuses.values()):
            return
        errors = worker_group_status.errors
        echoes = all(isinstance(e, WorkerError) and e.echo for e in errors.values())
        end = time.monotonic() + (_LATE_S if echoes else 0.0)
        for rank, status in statuses.items():
            if status.error is None and echoes:
                status.error = self._death(rank, end)
        step = self._step(statuses)
        for rank, status in statuses.items():
            gone = isinstance(status.error, WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError)
            if gone and not is_preempted(status.error):
                inner = getattr(status.error, "health_check_failure", status.error)
                status.error = WorkerLostError(self._places[rank], reason_of(inner), step)

    def _step(self, statuses: dict[int, Any]) -> int:
        """Return the step that those who live are at; -1 where they do not say so soon."""
        steps = [error.step for status in statuses.values() if isinstance(error := _own(status.error), WorkerError)]
        for rank, status in statuses.items():
            if status.error is None and not steps:
                with contextlib.suppress(ray.exceptions.RayError):
                    actor = self._group.get_workers()[rank].actor
                    steps.append(ray.get(actor.execute.remote(worker.step), timeout=1.0))
        return max(steps, default=-1)

    def _death(self, rank: int, end: float) -> Exception | None:
        """Return what tells that a worker is gone, if that is known until then."""
        probe = self._group.get_workers()[rank].actor.get_metadata.remote()
        try:
            ray.get(probe, timeout=max(0.5, end - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            return None
        except ray.exceptions.RayActorError as error:
            dead: Exception = WorkerHealthCheckFailedError("gone", error)
            return dead
        return None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Keep what made the run start again."""
        if isinstance(current_state, RestartingState | ReschedulingState):
            error = current_state.training_failed_error
            lost = isinstance(error, ControllerError)
            self._note(Fault("loss", "A worker was lost as the run began.") if lost else fault_of(error))
        elif isinstance(current_state, ResizingState):
            self._resizing = True
            count = current_state.scaling_decision.num_workers
            self._note(Fault("preemption", f"There is room for {count} workers, and there were {len(self._places)}."))

    def _note(self, fault: Fault) -> None:
        entry = {"cause": fault.cause, "text": fault.text, "step": fault.step, "at": time.time()}
        self._history.append({**entry, "workers": len(self._places)})

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        """Let the workers save before they are replaced by more, or fewer."""
        if not self._resizing:  # they have failed
            return
        end = time.monotonic() + self._grace_s
        with contextlib.suppress(ray.exceptions.RayActorError):
            self._group.execute(worker.take_away)
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
        # Ray removes the placement groups of a driver that has ended by itself.
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        return super()._initialize_and_run_controller(**parts | {"failure_policy": Budgets(self._options)})
