"""What runs in each worker: the same loop as in one process, begun where an attempt before it was saved."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.cloudpickle
from ray.experimental.internal_kv import _internal_kv_get
from ray.train.v2._internal.execution.context import get_train_context

from shipline.checkpoint import Checkpoint, open_checkpoint
from shipline.errors import ConfigError, NotFoundError
from shipline.store import join
from shipline.train.checkpoints import find_checkpoint
from shipline.train.checkpoints.weights import dump_weights
from shipline.train.distributed import first_does
from shipline.train.distributed.watchdog import apart
from shipline.train.launch.faults import Where, WorkerError
from shipline.train.signals import TAKEN_AWAY, TakenAway
from shipline.train.strategies import pick_strategy
from shipline.train.trainer import Trainer
from shipline.train.worker import run_worker

FAULTS_FILE = "faults.json"
KV_NAMESPACE = "shipline"

#: Attributes of a Trainer that the driver's takes over.
STATE = ("reduced_metrics", "logged_metrics", "epoch_progress", "progress", "should_stop")

_LISTEN_S = 0.5


class _Attempt:
    """Which attempt this process works for, and what it was told meanwhile."""

    restarted = False
    history: list[dict[str, Any]] = []
    taken_away = False
    told: int | None = None
    trainer: Trainer | None = None


_attempt = _Attempt()


def begin(restarted: bool, history: list[dict[str, Any]]) -> None:
    """Begin an attempt, in the worker's main thread: SIGTERM is noted from here on; a second one ends the process."""
    _attempt.restarted, _attempt.history = restarted, history

    def note(number: int, _frame: Any) -> None:
        if _attempt.taken_away:
            os._exit(128 + number)
        _attempt.taken_away = True

    signal.signal(signal.SIGTERM, note)


def take_away() -> None:
    """Let this worker save and end, since others will go on."""
    _attempt.taken_away = True


def step() -> int:
    """Return the optimizer steps that this worker has made; -1 before it has begun."""
    return -1 if _attempt.trainer is None else _attempt.trainer.progress.global_step


def work(config: dict[str, Any]) -> bytes | None:
    """Run a stage; the first worker returns what the driver's objects need.

    Raises:
        WorkerError: something was raised, or the worker has saved because it will be taken away.
    """
    context = ray.train.get_context()
    where = Where(context.get_world_rank(), context.get_world_size(), ray.util.get_node_ip_address(), os.getpid())
    trainer: Trainer | None = None
    try:
        sys.path.extend(entry for entry in config["path"] if entry not in sys.path)
        _go_to(config["directory"])
        trainer, *rest = _unpacked(config["payload"])
        assert trainer is not None
        return _work(trainer, config, where, *rest)
    except BaseException as error:
        raise WorkerError.of(error, where, 0 if trainer is None else trainer.progress.global_step) from None


def _go_to(directory: Path) -> None:
    """Let relative paths mean what they mean to the driver: in the copy of its directory, else there, if it is here."""
    if "working_dir" not in ray.get_runtime_context().runtime_env:
        with contextlib.suppress(OSError):  # this machine has none, or not for us
            os.chdir(directory)


def _unpacked(payload: bytes) -> Any:
    """The user's code is found where the driver found it, or where the runtime environment has put it."""
    try:
        return ray.cloudpickle.loads(payload)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"A worker on node {ray.util.get_node_ip_address()} cannot import {error.name!r}, which the driver has: "
            "ship your code with Trainer(cluster=RayCluster(runtime_env={'working_dir': '.'})), or install it there."
        ) from error


def _work(
    trainer: Trainer, config: dict[str, Any], where: Where, module: Any, data: Any, stage: Any, options: dict[str, Any]
) -> bytes | None:
    strategy = pick_strategy(trainer.strategy_setting, where.workers)
    trainer.workers = where.workers
    if "resume" in options and _attempt.restarted:
        options["resume"] = _resume_point(trainer, options["resume"], config["committed"])
    trainer.signals.ask, _attempt.trainer = _what_was_told, trainer
    if where.rank == 0:
        threading.Thread(target=_listen, args=(config["key"],), daemon=True).start()
        if _attempt.history:
            _record(trainer, options.get("resume"))
    found, ended = None, None
    try:
        found = apart(trainer, partial(run_worker, trainer, stage, module, data, strategy, config["seed"], **options))
    except TakenAway:
        raise
    except SystemExit as end:  # as the driver was told; its process ends with this
        ended = end.code
    weights = strategy.weights(module) if stage == "fit" and ended is None else None
    return _returned(trainer, weights, found, ended) if where.rank == 0 else None


def _returned(trainer: Trainer, weights: dict[str, Any] | None, found: Any, ended: Any) -> bytes:
    returned: dict[str, Any] = {"found": found, "callbacks": trainer.callbacks, "lineage": trainer.lineage}
    returned |= {"ended": ended, "state": {name: getattr(trainer, name) for name in STATE}}
    if weights is not None:
        returned["weights"], returned["tied"] = dump_weights(weights)
    return bytes(ray.cloudpickle.dumps(returned))  # Ray Train refuses to return objects that hold tensors


def last_committed(trainer: Trainer) -> str | None:
    """URL of what means the newest checkpoint of the run; None where it keeps none."""
    keeper = trainer.checkpoint_callback
    if keeper is not None and keeper.dirpath is not None:
        return join(keeper.dirpath, "last")
    return None if trainer.run_directory is None else join(trainer.run_directory.store.url, "last")


def _resume_point(trainer: Trainer, given: Any, committed: str | None) -> Checkpoint | None:
    """Return what the run committed last, the same on all workers; where it has nothing yet, what it began with.

    The first worker reads all of it; the others need not.
    """

    def find() -> str | None:
        if (url := last_committed(trainer)) is None:
            return None
        with contextlib.suppress(NotFoundError):
            checkpoint = find_checkpoint(url)
            return None if checkpoint.manifest.digest == committed else checkpoint.store.url
        return None

    found = first_does(find)
    return given if found is None else open_checkpoint(found)


def _record(trainer: Trainer, resume: Checkpoint | None) -> None:
    """Say, and write down, what has happened and where the run goes on."""
    last = _attempt.history[-1]
    step = 0 if resume is None else resume.manifest.global_step
    last |= {"resumed_step": step, "seconds": round(time.time() - last["at"], 3)}
    again = f"; {last['step'] - step} steps are made again" if last["step"] > step else ""
    start = "from the beginning" if resume is None else f"from {resume} at step {step}"
    print(f"{last['text']} The run goes on {start}{again}.", flush=True)  # noqa: T201
    if trainer.run_directory is not None:
        store, known = trainer.run_directory.store, []
        with contextlib.suppress(NotFoundError):
            known = json.loads(store.read(FAULTS_FILE))
        seen = {fault["at"] for fault in known}
        known += [fault for fault in _attempt.history if fault["at"] not in seen]
        store.write(FAULTS_FILE, json.dumps(known, indent=1).encode())


def _listen(key: str) -> None:
    """Wait for what the driver was told."""
    while _attempt.told is None:
        if (value := _internal_kv_get(key.encode(), namespace=KV_NAMESPACE)) is not None:
            _attempt.told = int(value)
        time.sleep(_LISTEN_S)


def _what_was_told() -> int | None:
    if _attempt.told is not None:
        return _attempt.told
    warned = get_train_context().preemption_context.preemption_info is not None
    return TAKEN_AWAY if _attempt.taken_away or warned else None
