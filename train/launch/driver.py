"""The driver of several workers: starts them, waits for them, and takes back what they have made.

Ray Train places the workers, joins them in a process group and watches them; what runs in each is the same loop as in
one process. Its `report()` is not used: metrics that come without one of its own checkpoints are dropped by it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from shipline.errors import ConfigError, MissingExtraError, NotFoundError, ShiplineError, TrainingError
from shipline.train.accelerators import ray_resource
from shipline.train.lightning import attach
from shipline.train.seed import current_seed
from shipline.train.signals import Signals, ending

try:
    import ray
    import ray.cloudpickle
    from ray.experimental.internal_kv import _internal_kv_put
    from ray.train import LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError
except ModuleNotFoundError as error:
    raise MissingExtraError("Trainer(workers=...) above 1 needs Ray. Run: pip install 'shipline[ray]'") from error

from shipline.checkpoint import open_checkpoint
from shipline.train.checkpoints.weights import load_whole
from shipline.train.launch.cluster import connected, head_answers, is_kept
from shipline.train.launch.controller import End, Training, Watch
from shipline.train.launch.faults import MOST_TEXT, fault_of, first_error
from shipline.train.launch.group import GroupConfig
from shipline.train.launch.lease import Lease
from shipline.train.launch.room import check_room, no_room
from shipline.train.launch.worker import KV_NAMESPACE, last_committed, work

if TYPE_CHECKING:
    from shipline.train.data import DataModule
    from shipline.train.stage import Work
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

_LOOK_S = 0.5
_HEAD_S = 2.0
_END_S = 30.0  # for the workers to be gone when the driver has given up


def launch(trainer: Trainer, module: Any, data: DataModule | None, stage: Work, **options: Any) -> Any:
    """Run a stage on `trainer.workers` workers, and bring weights, metrics and callbacks back into these objects.

    In place of a module there may be a function of the user's own.

    Raises:
        ConfigError: the cluster has too few resources; or what a worker found wrong in the settings.
        TrainingError: a worker failed; the message names the first cause.
        SystemExit: the driver was told to end, and the workers have saved.
    """
    cluster = trainer.cluster
    accelerator = ray_resource(trainer._accelerator)  # noqa: SLF001 -- its own launcher
    resources = cluster.resources(accelerator)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_logging())
        lease = stack.enter_context(_lease(trainer, stage))
        there = ray.is_initialized() and not is_kept()
        stack.enter_context(connected(cluster, trainer.workers, elastic=trainer.worker_range is not None))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="shipline-ray-"))
        check_room(trainer, resources)
        key = secrets.token_hex(8)
        stays = there or is_kept()
        training = Training(
            work,
            options=cluster,
            train_loop_config={
                "payload": ray.cloudpickle.dumps((trainer, module, data, stage, options)),
                "path": [entry for entry in sys.path if entry],
                "directory": Path.cwd(),
                "seed": current_seed(),
                "committed": _committed(trainer),
                "key": key,
            },
            torch_config=GroupConfig(),
            scaling_config=ScalingConfig(
                num_workers=trainer.worker_range or trainer.workers,
                use_gpu=accelerator == "GPU",
                resources_per_worker=resources,
                placement_strategy=cluster.placement,
                accelerator_type=cluster.accelerator_type,
                elastic_resize_monitor_interval_s=cluster.resize_check_s,
            ),
            run_config=RunConfig(
                storage_path=scratch,
                logging_config=LoggingConfig(log_level="CRITICAL"),
                callbacks=[Watch(cluster), *([End(_ended(key))] if stays else [])],
                worker_runtime_env=_runtime_env(trainer) if there else {},
            ),
        )
        try:
            returned = _supervised(training.fit, trainer, stage, key, lease, stays=stays).return_value
        except TrainingFailedError as error:
            raise _first_cause(error, trainer, resources) from error
        except ray.exceptions.RayError as error:  # no error of a worker's
            raise TrainingError(
                f"What controls the workers has ended: {' '.join(str(error).split())[:MOST_TEXT]} Start the run again "
                "with ckpt_path='last'."
            ) from error
        return _take_back(trainer, module, stage, returned)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Leave the root logger as it was: Ray sets its level, and gives it handlers that stay."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


@contextlib.contextmanager
def _lease(trainer: Trainer, stage: Work) -> Iterator[Lease | None]:
    if trainer.run_directory is None or stage not in ("fit", "run"):
        yield None
        return
    with Lease(trainer.run_directory.store) as lease:
        yield lease


def _committed(trainer: Trainer) -> str | None:
    """The digest of the newest checkpoint that there is before anything was trained."""
    url = last_committed(trainer)
    with contextlib.suppress(NotFoundError, ShiplineError):
        return None if url is None else open_checkpoint(url).manifest.digest
    return None


def _runtime_env(trainer: Trainer) -> dict[str, Any]:
    """What workers get of the user's where he has connected; else it went with the connection, directories included.

    Raises:
        ConfigError: it has directories of this machine.
    """
    found = trainer.cluster.runtime_env
    if sent := [name for name in ("working_dir", "py_modules") if name in found]:
        raise ConfigError(
            f"RayCluster has runtime_env[{sent[0]!r}], and ray.init() was called before: give it to ray.init()."
        )
    return dict(found)


def _supervised(
    fit: Callable[[], Any], trainer: Trainer, stage: Work, key: str, lease: Lease | None, *, stays: bool
) -> Any:
    """Return what Ray Train does; on a cluster that stays, nothing of it is left when the driver gives up."""
    outcome: Future[Any] = Future()
    threading.Thread(target=_run, args=(fit, outcome), name="shipline-ray-train", daemon=True).start()
    try:
        return _waited(outcome, trainer, stage, key, lease)
    except BaseException:
        if stays and not outcome.done():
            _give_up(outcome, key)
        raise


def _waited(outcome: Future[Any], trainer: Trainer, stage: Work, key: str, lease: Lease | None) -> Any:
    """Wait for the workers, for signals, and for the end of the cluster's head, which Ray itself notices late."""
    signals, told_at = Signals(), 0.0
    answered = looked = time.monotonic()
    with signals.handled():
        while True:
            concurrent.futures.wait([outcome], timeout=_LOOK_S)
            if outcome.done():  # perhaps with a TimeoutError of its own
                return outcome.result()
            now = time.monotonic()
            if signals.received is not None and not told_at:
                told_at = _tell(signals.received, stage, key)
            if told_at and now - told_at > trainer.cluster.grace_s:
                logger.warning("The workers have not saved within grace_s=%g seconds.", trainer.cluster.grace_s)
                raise ending(signals.received or 0)
            if lease is not None and lease.is_lost:
                raise lease.lost()
            if now - looked > _HEAD_S:
                looked = now
                answered = now if head_answers() else answered
                if now - answered > trainer.cluster.head_timeout_s:
                    raise TrainingError(
                        f"The head of the cluster has not answered for {now - answered:.0f} s. Start the run again "
                        "with ckpt_path='last' when there is a cluster."
                    )


def _give_up(outcome: Future[Any], key: str) -> None:
    """Let the controller end itself and the workers; without a head there is nobody to tell, and nothing stays."""
    if not head_answers():
        return
    _internal_kv_put(_ended(key).encode(), b"1", namespace=KV_NAMESPACE)
    concurrent.futures.wait([outcome], timeout=_END_S)
    if not outcome.done():
        logger.warning("The workers have not ended for %g s: they end when their controller answers again.", _END_S)


def _ended(key: str) -> str:
    """Where the driver says that it has given up."""
    return f"{key}-ended"


def _run(fit: Callable[[], Any], outcome: Future[Any]) -> None:
    try:
        outcome.set_result(fit())
    except BaseException as error:
        outcome.set_exception(error)


def _tell(number: int, stage: Work, key: str) -> float:
    """Let the workers save and end; what cannot be saved ends at once."""
    if stage not in ("fit", "run") or not head_answers():
        raise ending(number)
    _internal_kv_put(key.encode(), str(number).encode(), namespace=KV_NAMESPACE)
    return time.monotonic()


def _take_back(trainer: Trainer, module: Any, stage: Work, data: bytes) -> Any:
    """Leave the driver's objects as a stage in this process would have left them."""
    returned = ray.cloudpickle.loads(data)
    if "weights" in returned:
        tensors = safetensors.torch.load(returned["weights"])
        load_whole(module, tensors | {name: tensors[source] for name, source in returned["tied"].items()})
    for own, theirs in zip(trainer.callbacks, returned["callbacks"], strict=True):
        own.__dict__.update(theirs.__dict__)
    trainer.lineage = returned["lineage"]
    for name, value in returned["state"].items():
        setattr(trainer, name, value)
    if returned["ended"] is not None:
        raise SystemExit(returned["ended"])
    if stage != "run":
        trainer.module = module
        attach(module, trainer)
    return returned["found"]


def _first_cause(error: TrainingFailedError, trainer: Trainer, resources: dict[str, float]) -> ShiplineError:
    """Return what a worker raised, if it is one of our errors, or one that names worker, node, step and cause."""
    cause = getattr(error, "controller_failure", None) if isinstance(error, ControllerError) else None
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return no_room(trainer, resources)
    if isinstance(error, WorkerGroupError) and (first := first_error(error)) is not None:
        if first.error is not None:
            return first.error
        failure = TrainingError(f"{first}")
        failure.add_note(first.trace)
        return failure
    fault = fault_of(error)
    return TrainingError(f"{fault.text} Resume with ckpt_path='last'." if fault.cause == "loss" else fault.text)
