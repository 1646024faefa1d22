"""Who is to blame for a step that does not end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shipline.train.distributed.whereabouts import Process, Whereabouts

_MOST = 8  # workers that a message names


@dataclass(frozen=True)
class Heard:
    """What was heard last of another worker."""

    #: Seconds since then.
    ago: float
    where: Whereabouts | None


@dataclass(frozen=True)
class Verdict:
    """What has happened, and whose process does not run any more."""

    message: str
    silent: tuple[int, ...] = ()


def judge(
    deadline: float, rank: int, own: Whereabouts, others: Mapping[int, Heard], processes: Mapping[int, Process],
    patience: float, *, deaf: bool = False,
) -> Verdict:  # fmt: skip
    """Say which worker is missing, and in which collective.

    Args:
        deadline: seconds that a step may take.
        rank: of the worker that judges.
        own: where it is.
        others: what it has heard of the others.
        processes: of all workers.
        patience: seconds for which a worker that runs may be silent.
        deaf: whether what carries the words of the others is silent itself.
    """
    size = len(others) + 1
    began = f"A step has taken longer than step_timeout={deadline:g} s. "
    silent = tuple(each for each, heard in others.items() if heard.ago > patience)
    here = f"Worker {rank} is in {own}" + (f", and waits in {own.collective}." if own.collective else ".")
    if deaf:
        return Verdict(f"{began}The store of the workers does not answer, so that nobody knows who is missing. {here}")
    if silent:
        missing = [f"worker {each} of {size} ({processes[each]}) {_last(others[each])}" for each in silent]
        return Verdict(f"{began}Missing: {_listed(missing)}. {here}", silent)
    running = {each: heard.where for each, heard in others.items() if heard.where is not None} | {rank: own}
    late = {each: where for each, where in running.items() if where.collective is None}
    waiting = {each: where for each, where in running.items() if where.collective is not None}
    if late and waiting:
        behind = [f"worker {each} of {size} is still in {where}" for each, where in sorted(late.items())]
        each, where = min(waiting.items())
        return Verdict(f"{began}Late: {_listed(behind)}. Worker {each} waits in {where.collective}: it is in {where}.")
    if waiting:
        apart = [f"worker {each} in {where.collective} ({where})" for each, where in sorted(waiting.items())]
        return Verdict(
            f"{began}All {size} workers wait for each other: {_listed(apart)}. Where they are in different places, "
            "look for what only some of them do; where in the same, at the network between them."
        )
    return Verdict(began + here)


def _last(heard: Heard) -> str:
    last = "" if heard.where is None else f"; it was last seen in {heard.where}"
    return f"has not been heard from for at least {heard.ago:.1f} s{last}"


def _listed(items: list[str]) -> str:
    more = f"; and {len(items) - _MOST} more" if len(items) > _MOST else ""
    return "; ".join(items[:_MOST]) + more
