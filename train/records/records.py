"""The records of a run: written while it begins, brought up to date when it ends, however it does."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from shipline.errors import ExistsError, NotFoundError, ShiplineError
from shipline.lineage import Lineage, without_secrets
from shipline.runs import CONFIG_FILE, ENVIRONMENT_FILE, HPARAMS_FILE, RUN_FILE, RunRecord
from shipline.store import Store, redact
from shipline.train.metrics import finite_or_none
from shipline.train.records.background import Background
from shipline.train.records.environment import describe_environment

if TYPE_CHECKING:
    import torch

    from shipline.train.options.described import Description
    from shipline.train.records.code import Code
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

MOST_ERROR = 2000


def first_record(what: str, lineage: Lineage, job: str | None = None) -> dict[str, Any]:
    """Return what `run.json` says of a run of `what`, a module or a function, before anything has happened."""
    record = RunRecord(
        module=what,
        lineage=lineage.model_dump(mode="json"),
        state="running",
        started_at=datetime.now(UTC),
        **_here(job),
    )
    return record.model_dump(mode="json")


class Records:
    """What the first worker writes down about a run in its directory. A store that fails it does not fail the run."""

    def __init__(self) -> None:
        self._began = datetime.now(UTC)
        self._writing: Background[RunRecord | None] = Background.known(None)

    def begin(self, trainer: Trainer, hparams: dict[str, Any], *, resumed: bool) -> None:
        """Write in a thread what the run begins with: its first step does not wait for it."""
        if trainer.run_directory is None:
            return
        self._began = datetime.now(UTC)
        arguments = _yaml(hparams) if hparams else None
        write = partial(
            self._write_first, trainer.run_directory.store, trainer.description, arguments, trainer.device,
            trainer.code, trainer.lineage_so_far, resumed, job_of(trainer),
        )  # fmt: skip
        self._writing = Background(partial(_tried, write))

    def end(self, trainer: Trainer, error: BaseException | None) -> None:
        """Write how the run has ended, and its curves."""
        record = self._writing.result()
        if trainer.run_directory is not None:
            _tried(partial(self._write_last, trainer, trainer.run_directory.store, record, error))

    def fail(self, store: Store, error: BaseException) -> None:
        """Write down a failure that came before the records began, or took the process that wrote them."""

        def write() -> None:
            if (record := _read(store)).state == "running":
                _write(store, record.model_copy(update=_end(error)))

        _tried(write)

    def _write_first(
        self, store: Store, settings: Description, arguments: bytes | None, device: torch.device,
        code: Background[Code], lineage: Lineage, resumed: bool, job: str | None,
    ) -> RunRecord:  # fmt: skip
        store.write(CONFIG_FILE, settings.to_yaml())
        if arguments is not None and resumed:
            store.write(HPARAMS_FILE, arguments)
        elif arguments is not None:
            with contextlib.suppress(ExistsError):  # a CSVLogger was faster: it may know of more arguments
                store.create(HPARAMS_FILE, arguments)
        store.write(ENVIRONMENT_FILE, json.dumps(describe_environment(device), indent=1).encode())
        for name, data in code.result().files().items():
            store.write(name, data)
        changes: dict[str, Any] = {
            "lineage": lineage.model_copy(update=code.result().lineage).model_dump(mode="json"),
            "state": "running", "ended_at": None, "error": None, **_here(job),
        }  # fmt: skip
        if resumed:
            changes["resumed_at"] = self._began
        record = _read(store).model_copy(update=changes)
        _write(store, record)
        return record

    def _write_last(
        self, trainer: Trainer, store: Store, record: RunRecord | None, error: BaseException | None
    ) -> None:
        record, end = record or _read(store), _end(error)
        kept = trainer.checkpoint_callback
        best = None if kept is None else kept.best_model_score
        record = record.model_copy(update=end | {
            "lineage": trainer.lineage.model_dump(mode="json"),
            "seconds": record.seconds + (end["ended_at"] - self._began).total_seconds(),
            "epochs": trainer.epochs_done,
            "steps": trainer.global_step,
            "metrics": finite_or_none(trainer.callback_metrics),
            "monitor": None if kept is None else kept.monitor,
            "mode": None if kept is None or kept.monitor is None else kept.mode,
            "best": None if best is None else finite_or_none({"best": best})["best"],
        })  # fmt: skip
        _write(store, record)
        from shipline.train.records.plots import write_plots  # what draws is not needed before

        write_plots(store, record)


def _end(error: BaseException | None) -> dict[str, Any]:
    ended: dict[str, Any] = {"state": "finished", "error": None, "ended_at": datetime.now(UTC)}
    if error is not None:
        ended["state"] = "failed" if isinstance(error, Exception) else "interrupted"
        ended["error"] = redact(f"{type(error).__name__}: {error}")[:MOST_ERROR]
    return ended


def job_of(trainer: Trainer) -> str | None:
    """Return what its queue calls the job that the trainer runs in, if there is a queue."""
    return None if trainer.environment is None else trainer.environment.job


def _here(job: str | None) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job}


def _yaml(content: dict[str, Any]) -> bytes:
    import yaml  # its import takes time, and the first step needs none

    return yaml.safe_dump(without_secrets(content), sort_keys=False, allow_unicode=True).encode()


def _read(store: Store) -> RunRecord:
    try:
        return RunRecord.model_validate_json(store.read(RUN_FILE))
    except (NotFoundError, ValidationError):  # somebody has deleted or changed it; the run goes on
        return RunRecord(started_at=datetime.now(UTC))


def _write(store: Store, record: RunRecord) -> None:
    store.write(RUN_FILE, record.model_dump_json(indent=1).encode())


def _tried(write: Callable[[], RunRecord | None]) -> RunRecord | None:
    """A run is worth more than what is written about it."""
    try:
        return write()
    except Exception as error:
        unexpected = not isinstance(error, ShiplineError)
        logger.warning("The records of the run are not complete: %s", redact(str(error)), exc_info=unexpected)
        return None
