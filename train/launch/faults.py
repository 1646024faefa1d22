"""What can go wrong on a cluster: a worker's error, a lost worker or machine, one that will be taken away.

What a worker raises crosses to other processes as `WorkerError`, which is text alone: the user's own exceptions need
not be known there.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, Literal

from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2.api.exceptions import PreemptionError, WorkerGroupError

from shipline.errors import HungError, ShiplineError
from shipline.train.signals import TakenAway
from shipline.train.worker import is_echo

Cause = Literal["code", "loss", "preemption"]
MOST_TEXT = 600
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "std::bad_alloc", "memoryerror")


@dataclass(frozen=True)
class Where:
    """A worker: its number, of how many, its machine and process."""

    rank: int
    workers: int
    node: str
    pid: int

    def __str__(self) -> str:
        return f"Worker {self.rank} of {self.workers} (node {self.node}, process {self.pid})"


class WorkerError(Exception):
    """What a worker raised.

    Args:
        where: which.
        step: the optimizer steps it had made.
        text: what it raised, in one line.
        cause: "code", or "preemption" where it has saved because it will be taken away.
        echo: whether it only says that another worker is gone.
        error: it itself, where it is one of ours.
        trace: where it was raised.
    """

    def __init__(
        self, where: Where, step: int, text: str, cause: Cause = "code", echo: bool = False,
        error: ShiplineError | None = None, trace: str = "",
    ) -> None:  # fmt: skip
        super().__init__(where, step, text, cause, echo, error, trace)
        self.where, self.step, self.text, self.cause = where, step, text, cause
        self.echo, self.error, self.trace = echo, error, trace

    def __str__(self) -> str:
        if self.cause == "preemption":
            return f"{self.where} {self.text} at step {self.step}"
        return f"{self.where} failed at step {self.step}: {self.text}"

    @classmethod
    def of(cls, error: BaseException, where: Where, step: int) -> WorkerError:
        """Return what tells of an error that was caught."""
        text = " ".join(f"{type(error).__name__}: {error}".split())
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, TakenAway):
            return cls(where, step, "will be taken away; saved", "preemption")
        if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _NO_MEMORY):
            text = f"out of memory: {text} Take a smaller batch, or a machine with more."
        ours = error if isinstance(error, ShiplineError) else None
        return cls(where, step, text, echo=is_echo(error), error=ours, trace=trace)


class WorkerLostError(Exception):
    """A worker's process, or its machine, is gone; `step` is the one that the others were at, -1 where none is left."""

    def __init__(self, where: Where, reason: str, step: int = -1) -> None:
        super().__init__(where, reason, step)
        self.where, self.reason, self.step = where, reason, step

    def __str__(self) -> str:
        at = "" if self.step < 0 else f" at step {self.step}"
        return f"{self.where} was lost{at}: {self.reason}"


def reason_of(error: BaseException) -> str:
    """Return why an actor is gone, in our words."""
    text = str(error)
    if "OutOfMemory" in type(error).__name__ or "memory monitor" in text:
        return "Ray ended it because its machine ran out of memory"
    if "node has died" in text or "node was terminated" in text or "NodeDied" in type(error).__name__:
        return "its node is gone"
    if isinstance(error, WorkerHealthCheckTimeoutError):
        return "it does not answer"
    return "its process is gone: killed, as for want of memory, or crashed"


@dataclass(frozen=True)
class Fault:
    """Why the workers were stopped.

    Args:
        cause: whose budget it takes: "code", "loss", "preemption".
        text: what has happened, with worker and node.
        step: the optimizer steps made by then; -1: nobody is left to know.
    """

    cause: Cause
    text: str
    step: int = -1


def fault_of(error: Exception) -> Fault:
    """Return the first cause of what Ray Train found: one worker's end makes others fail, whose errors are echoes."""
    if isinstance(error, PreemptionError):
        ranks = ", ".join(map(str, error.preemption_info.preempted_ranks))
        return Fault("preemption", f"The nodes of workers {ranks} were taken away.")
    if not isinstance(error, WorkerGroupError) or not error.worker_failures:
        return Fault("code", f"The run failed: {' '.join(str(error).split())[:MOST_TEXT]}")
    failures = dict(sorted(error.worker_failures.items()))
    told = [failure for failure in failures.values() if isinstance(failure, WorkerError)]
    lost = [failure for failure in failures.values() if not isinstance(failure, WorkerError)]
    step = max((failure.step for failure in failures.values() if hasattr(failure, "step")), default=-1)
    if any(is_preempted(failure) for failure in failures.values()):
        first = next(failure for failure in failures.values() if is_preempted(failure))
        return Fault("preemption", f"{first}.", step)
    hung = [failure for failure in told if isinstance(failure.error, HungError)]
    if hung:  # who hangs was ended by those who say so
        return Fault("loss", str(hung[0]), step)
    if lost:
        return Fault("loss", f"{lost[0]}.", step)
    own = [failure for failure in told if not failure.echo]
    if own:
        return Fault("code", str(own[0]), own[0].step)
    return Fault("loss", f"{told[0]} (the first to miss another worker)", step)


def first_error(error: WorkerGroupError) -> WorkerError | None:
    """Return the error of a worker's code that came first, None where there is none."""
    told = [failure for _, failure in sorted(error.worker_failures.items()) if isinstance(failure, WorkerError)]
    return next((failure for failure in told if not failure.echo), None)


def is_preempted(failure: Any) -> bool:
    """Whether a worker was taken away, with or without having saved."""
    if isinstance(failure, WorkerError):
        return failure.cause == "preemption"
    if isinstance(failure, WorkerHealthCheckFailedError):
        failure = failure.health_check_failure
    return isinstance(failure, RayActorError) and bool(failure.preempted)
