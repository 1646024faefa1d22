"""Metrics for MLflow."""

from __future__ import annotations

import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from shipline.errors import ConfigError, StoreError
from shipline.store import Store, redact
from shipline.train.loggers.library import LibraryLogger
from shipline.train.loggers.place import Place
from shipline.train.loggers.values import flat_params, numbers

logger = logging.getLogger(__name__)

_REFUSED = re.compile(r"[^A-Za-z0-9_/. -]")
_AT_ONCE = 100  # parameters that a server takes in one call
_LONGEST_NAME = 250
_BETWEEN_TRIES = 100
_DIRECTORIES = ("metrics", "params", "tags", "artifacts")
Row = tuple[dict[str, float], int, int]  # metrics, step, milliseconds


class MLFlowLogger(LibraryLogger):
    """Logs to an MLflow server, or into `mlruns` in the run's directory: offline, with nothing to set up.

    `MLFLOW_DISABLE_TELEMETRY=true` is set unless you set it, and for files `MLFLOW_ALLOW_FILE_STORE=true`: set that one
    as well where you read them (`mlflow ui --backend-store-uri ...`).

    Args:
        experiment_name: default: the name of the experiment.
        run_name: default: that of the run's directory.
        tracking_uri: of the server or the database; default: MLFLOW_TRACKING_URI, or files.
        tags: of the run.
        save_dir: directory for the files where there is no `tracking_uri`; default: `mlruns` in the run's directory.
        log_model: False; checkpoints stay in the run's directory.
        prefix: what names of metrics are to begin with, before a "-".
        artifact_location: where artifacts of a new experiment go; default: the server decides.
        run_id: of a run to go on with.
        synchronous: wait for the server at each call; default: MLflow's.
    """

    subdirectory = "mlruns"

    def __init__(
        self,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | None = None,
        log_model: bool | str = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
    ) -> None:
        if log_model:
            raise ConfigError(
                f"MLFlowLogger has log_model={log_model!r}: checkpoints stay in the run's directory, on any store. "
                "Leave it out, or log an artifact in a callback: trainer.logger.experiment.log_artifact(...)."
            )
        super().__init__("mlflow", Place(save_dir, "", ""), prefix)
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tracking_uri = tracking_uri
        self._tags = dict(tags or {})
        self._artifact_location = artifact_location
        self._given_run_id = self._run_id = run_id
        self._experiment_id: str | None = None
        self._options: dict[str, Any] = {} if synchronous is None else {"synchronous": synchronous}
        self._waiting: list[Row] = []
        self._counts: dict[str, int] = {}  # values of each metric so far
        self._skip: dict[str, int] = {}  # those that the server has from before the run was resumed
        self._replaced: set[str] = set()
        self._kept: dict[str, Any] | None = None
        self._resuming = False
        self._try_from = 1  # rows that wait before the server is asked again
        self._warned = False

    # ---- resuming ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the run, and how many values each metric has: a resumed run goes on after them."""
        with self._lock:
            return {} if self._run_id is None else {"run_id": self._run_id, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the id to go on with."""
        self._kept = state

    def open(self, run: Store | None, resumed_step: int | None) -> None:
        """Begin a run of MLflow's, or go on with that of a resumed run."""
        super().open(run, resumed_step)
        kept, self._kept = self._kept, None
        if self._library is not None:  # it was used before
            return
        self._run_id, self._counts, self._waiting, self._skip = self._given_run_id, {}, [], {}
        self._resuming = resumed_step is not None and kept is not None
        if self._resuming and kept is not None:
            self._run_id, self._counts = kept["run_id"], dict(kept["counts"])

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """The id of the experiment, once there is one."""
        return self._experiment_id

    @property
    def version(self) -> str | None:
        """The id of the run, once there is one."""
        return self._run_id

    @property
    def run_id(self) -> str | None:
        """The id of the run, which is made if there is none yet."""
        _ = self.experiment
        return self._run_id

    @property
    def experiment_id(self) -> str | None:
        """The id of the experiment, which is made if there is none yet."""
        _ = self.experiment
        return self._experiment_id

    @property
    def _uri(self) -> str | None:
        """Of the server; None where files are written."""
        return self._tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") if self._place.save_dir is None else None

    @property
    def _is_placed(self) -> bool:
        return super()._is_placed or self._uri is not None

    # ---- writing -----------------------------------------------------------------------------------------------------

    def log_hyperparams(self, params: Any) -> None:
        """Take the arguments; MLflow never changes one that it has."""
        if not self._is_placed:
            return
        from mlflow.entities import Param

        with self._lock:
            client = self.experiment
            there = client.get_run(self._run_id).data.params
            found = {self._key(name): str(value) for name, value in flat_params(params).items()}
            if changed := [name for name, value in found.items() if there.get(name, value) != value]:
                logger.warning("MLflow keeps the earlier values of %s: it never changes a parameter.", changed)
            new = [Param(name, value) for name, value in found.items() if name not in there]
            for start in range(0, len(new), _AT_ONCE):
                client.log_batch(self._run_id, params=new[start : start + _AT_ONCE], **self._options)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics; where the server cannot be reached, they wait until `save`."""
        if not self._is_placed:
            return
        with self._lock:
            self._waiting.append((numbers(metrics, self._prefix), step, int(time.time() * 1000)))
            if len(self._waiting) < self._try_from:
                return  # each try may take MLflow minutes
            try:
                self._flush()
            except StoreError as error:
                if not self._warned:
                    logger.warning("%s Metrics are kept in memory until the server takes them.", error)
                self._warned = True
                self._try_from = len(self._waiting) + _BETWEEN_TRIES

    def save(self) -> None:
        """Bring what waits to the server or the files, and the files to the store."""
        with self._lock:
            if self._waiting:
                self._flush()
        super().save()

    def _flush(self) -> None:
        from mlflow.exceptions import MlflowException

        client = self.experiment
        while self._waiting:
            metrics, step, now = self._waiting[0]
            try:
                client.log_batch(self._run_id, metrics=self._entities(metrics, step, now), **self._options)
            except MlflowException as error:
                raise StoreError(f"MLflow at {self._shown} does not take metrics: {redact(str(error))}.") from error
            self._waiting.pop(0)
            for name in metrics:
                key = self._key(name)
                self._counts[key] = self._counts.get(key, 0) + 1
                self._skip[key] = max(0, self._skip.get(key, 0) - 1)
        self._try_from = 1

    def _entities(self, metrics: dict[str, float], step: int, now: int) -> list[Any]:
        from mlflow.entities import Metric

        keyed = {self._key(name): value for name, value in metrics.items()}
        return [Metric(key, value, now, step) for key, value in keyed.items() if not self._skip.get(key)]

    def _key(self, name: str) -> str:
        """The name as MLflow takes it. In files "loss" and "loss/x" could not both be: there a "/" becomes a "."."""
        key = _REFUSED.sub("_", name)[:_LONGEST_NAME]
        if key != name and name not in self._replaced:
            self._replaced.add(name)
            logger.warning("MLflow takes letters, digits and _/. - in a name: %r is logged as %r.", name, key)
        return key.replace("/", ".").replace(" ", "_") if self._uri is None else key

    # ---- the library -------------------------------------------------------------------------------------------------

    @property
    def _shown(self) -> str:
        return redact(self._uri or str(self._store()))

    def _start(self) -> Any:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = self._uri
        if uri is None or uri.startswith("file:") or ":" not in uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        if uri is None:
            path = self._open_files(fetch=True).path
            uri = path.as_uri()
            for run in path.glob("*/*/meta.yaml"):
                for name in _DIRECTORIES:  # without one of them it is no run; object stores have no empty ones
                    (run.parent / name).mkdir(exist_ok=True)
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        try:
            client = MlflowClient(uri)
            if self._run_id is None:
                self._create(client)
            else:
                self._go_on(client)
        except MlflowException as error:
            raise StoreError(f"MLflow at {self._shown} cannot be used: {redact(str(error))}.") from error
        return client

    def _create(self, client: Any) -> None:
        name = self._experiment_name or Place().name_in(self._run) or "Default"
        found = client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage != "deleted":
            self._experiment_id = found.experiment_id
        else:
            self._experiment_id = client.create_experiment(name, artifact_location=self._artifact_location)
        run_name = self._run_name or (None if self._run is None else Place().version_in(self._run))
        self._run_id = client.create_run(self._experiment_id, tags=self._tags, run_name=run_name).info.run_id

    def _go_on(self, client: Any) -> None:
        run = client.get_run(self._run_id)
        self._experiment_id = run.info.experiment_id
        client.update_run(self._run_id, status="RUNNING")
        if not self._resuming:
            return
        self._resuming = False
        if self._files is not None:
            _keep_values(self._files.path / str(self._experiment_id) / str(self._run_id) / "metrics", self._counts)
        else:
            there = {name: len(client.get_metric_history(self._run_id, name)) for name in run.data.metrics}
            self._skip = {name: max(0, count - self._counts.get(name, 0)) for name, count in there.items()}

    def _stop(self, status: str) -> None:
        self._flush()
        if self._files is not None and self._files.is_temporary:
            self._fill_directories(self._files.path / str(self._experiment_id) / str(self._run_id))
        self._library.set_terminated(self._run_id, "FINISHED" if status == "success" else "FAILED")

    def _fill_directories(self, run: Path) -> None:
        """See that none is empty, so that what is downloaded from an object store is a run that MLflow can read."""
        (run / "artifacts" / ".keep").touch()
        if not any((run / "params").iterdir()):
            self._library.log_param(self._run_id, "logger", "MLFlowLogger")


def _keep_values(directory: Path, counts: dict[str, int]) -> None:
    """Keep so many values of each metric: its file has a line for each."""
    for file in directory.iterdir() if directory.is_dir() else ():
        lines = file.read_text().splitlines(keepends=True)
        if (count := counts.get(file.name, 0)) == 0:
            file.unlink()
        elif len(lines) > count:
            file.write_text("".join(lines[:count]))
