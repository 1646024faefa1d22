"""Metrics for Weights & Biases."""

from __future__ import annotations

import inspect
import logging
import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shipline.errors import ConfigError, nearest
from shipline.store import Store
from shipline.train.loggers.library import LibraryLogger, require
from shipline.train.loggers.place import Place
from shipline.train.loggers.values import numbers, plain_params
from shipline.train.loggers.wandb_files import keep_rows, wait_for_end

logger = logging.getLogger(__name__)

STEP = "trainer/global_step"


class WandbLogger(LibraryLogger):
    """Logs to Weights & Biases; offline, into the run's directory, where neither a key nor a mode is configured.

    Offline runs are sent later by `wandb sync`. `WANDB_ERROR_REPORTING=false` is set unless you set it: errors of the
    library are not reported to its makers.

    Args:
        name: of the run there; default: that of the run's directory.
        save_dir: directory below which it keeps its files, in `wandb/`; default: the run's directory.
        version: the id of the run there, to go on with one.
        offline: write files only.
        dir: the same as `save_dir`.
        id: the same as `version`.
        anonymous: taken for Lightning's sake; W&B has it no more.
        project: default: WANDB_PROJECT, or the name of the experiment.
        log_model: False; checkpoints stay in the run's directory.
        experiment: a run of `wandb.init`, to log to that one; it is left open.
        prefix: what names of metrics are to begin with, before a "-".
        options: further arguments of `wandb.init`.
    """

    def __init__(
        self,
        name: str | None = None,
        save_dir: str | None = None,
        version: str | None = None,
        offline: bool = False,
        dir: str | None = None,  # noqa: A002 -- what W&B calls it
        id: str | None = None,  # noqa: A002
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: bool | str = False,
        experiment: Any = None,
        prefix: str = "",
        **options: Any,
    ) -> None:
        if log_model:
            raise ConfigError(
                f"WandbLogger has log_model={log_model!r}: checkpoints stay in the run's directory, on any store. "
                "Leave it out, or log an artifact in a callback: trainer.logger.experiment.log_artifact(...)."
            )
        super().__init__("wandb", Place(save_dir or dir, "", ""), prefix)
        _check(options)
        self._run_name = name
        self._given_id = self._id = version or id
        self._offline = offline
        self._project = project
        self._given = experiment
        self._options = options
        self._owned = False
        self._rows = 0
        self._skip = 0
        self._reopened = False
        self._kept: dict[str, Any] | None = None
        self._watched: list[tuple[Any, dict[str, Any]]] = []

    def __getstate__(self) -> dict[str, Any]:
        given = self._given
        return {
            **super().__getstate__(),
            "_given": None,
            "_watched": [],
            "_id": self._id if given is None else given.id,
        }

    # ---- resuming ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the run, and how many rows it has: a resumed run goes on after them."""
        with self._lock:
            return {} if self._id is None else {"id": self._id, "rows": self._rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the id to go on with."""
        self._kept = state

    def open(self, run: Store | None, resumed_step: int | None) -> None:
        """Begin a run of W&B's, or go on with that of a resumed run."""
        super().open(run, resumed_step)
        kept, self._kept = self._kept, None
        if self._library is not None:  # it was used before
            return
        self._id, self._rows, self._reopened = self._given_id, 0, False
        if resumed_step is not None and kept is not None:
            self._id, self._rows, self._reopened = kept["id"], kept["rows"], True
            if (store := self._store()) is not None:
                keep_rows(store, kept["id"], kept["rows"])

    # ---- writing -----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str | None:
        """The name of the project."""
        return self._project or os.environ.get("WANDB_PROJECT") or Place().name_in(self._run) or None

    @property
    def version(self) -> str | None:
        """The id of the run, once there is one."""
        return self._id

    def watch(self, model: Any, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True) -> None:
        """Log gradients, parameters or both ("all") of the module every `log_freq` steps, from the fit on."""
        options = {"log": log, "log_freq": log_freq, "log_graph": log_graph}
        with self._lock:
            self._watched.append((model, options))
            if self._library is not None:
                self._library.watch(model, **options)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics; W&B draws them over `trainer/global_step`."""
        self._log(numbers(metrics, self._prefix), step)

    def log_hyperparams(self, params: Any) -> None:
        """Take the arguments as the run's config."""
        if self._is_placed:
            with self._lock:
                self.experiment.config.update(plain_params(params), allow_val_change=True)

    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: int | None = None
    ) -> None:
        """Log a table, of columns and data or of a dataframe; its cells may be images."""
        import wandb

        self._log({key: wandb.Table(columns=columns, data=data, dataframe=dataframe)}, step)

    def log_text(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: int | None = None
    ) -> None:
        """Log text, as a table."""
        self.log_table(key, columns, data, dataframe, step)

    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        """Log images: tensors, arrays, Pillow's, or paths; options are lists with an item for each: `caption=[...]`."""
        self._log_media("Image", key, images, step, options)

    def log_audio(self, key: str, audios: list[Any], step: int | None = None, **options: Any) -> None:
        """Log sounds: arrays or paths; options are lists with an item for each."""
        self._log_media("Audio", key, audios, step, options)

    def log_video(self, key: str, videos: list[Any], step: int | None = None, **options: Any) -> None:
        """Log videos: arrays or paths; options are lists with an item for each."""
        self._log_media("Video", key, videos, step, options)

    def _log_media(
        self, kind: str, key: str, items: list[Any], step: int | None, options: Mapping[str, list[Any]]
    ) -> None:
        import wandb

        if not isinstance(items, list):
            raise ConfigError(f"log_{kind.lower()} needs a list; got {type(items).__name__}. Give [item], even of one.")
        for name, values in options.items():
            if len(values) != len(items):
                raise ConfigError(
                    f"log_{kind.lower()} has {len(items)} items, and {name} has {len(values)}: give one for each."
                )
        made = [
            getattr(wandb, kind)(item, **{name: values[index] for name, values in options.items()})
            for index, item in enumerate(items)
        ]
        self._log({key: made}, step)

    def _log(self, values: dict[str, Any], step: int | None) -> None:
        if not self._is_placed:
            return
        with self._lock:
            run = self.experiment
            if self._skip:  # the server has it from before the run was resumed
                self._skip -= 1
                return
            axis = {} if step is None else {STEP: step}
            # A second file of a run goes on where the first ends, so that the server takes both for one.
            run.log(values | axis, step=max(run.step, self._rows) if self._reopened else None, commit=True)
            self._reopened = False
            self._rows += 1

    # ---- the library -------------------------------------------------------------------------------------------------

    def _start(self) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        run = self._given or (wandb.run if self._id is None else None)
        self._owned = run is None
        if run is None:
            run = self._made(wandb)
            run.define_metric(STEP)
            run.define_metric("*", step_metric=STEP, step_sync=True)
            if run.starting_step:  # of these the checkpoint knew `rows`; those after them come again now
                self._skip, self._reopened = max(0, run.starting_step - self._rows), False
        self._id = run.id
        for model, options in self._watched:
            run.watch(model, **options)
        return run

    def _made(self, wandb: Any) -> Any:
        options = dict(self._options)
        offline = self._offline or not _is_configured(wandb)
        if offline:
            options.setdefault("mode", "offline")
            if not self._offline and "mode" not in self._options:
                logger.info("W&B has no API key and no WANDB_MODE: it writes files only. `wandb sync` sends them.")
        if options.get("mode") != "offline":
            options.setdefault("resume", "allow")
        path = self._prepared_directory()
        name = self._run_name or (None if self._run is None else Place().version_in(self._run))
        return wandb.init(project=self.name, name=name, dir=path, id=self._id, **options)

    def _prepared_directory(self) -> Path | None:
        """The directory for W&B, in which it sees the names that are taken: it names by the second."""
        store = self._store()
        if store is None:
            return None
        path = self._open_files().path
        for name in store.list("wandb"):
            if name.startswith("offline-run-"):
                (path / "wandb" / name).mkdir(parents=True, exist_ok=True)
        return path

    def _stop(self, status: str) -> None:
        run = self._library
        for model, _ in self._watched:
            run.unwatch(model)
        if not self._owned:
            return
        run.finish(exit_code=0 if status == "success" else 1)
        wait_for_end(Path(run.settings.sync_file))
        self._reopened = True


def _check(options: dict[str, Any]) -> None:
    if not options:
        return
    require("wandb")
    import wandb

    own = [name for name in inspect.signature(WandbLogger.__init__).parameters if name not in ("self", "options")]
    known = [*own, *inspect.signature(wandb.init).parameters]
    for name in options:
        if name not in known:
            raise ConfigError(f"WandbLogger has no option {name!r}.{nearest(name, known)} Known: {', '.join(known)}.")


def _is_configured(wandb: Any) -> bool:
    """Whether somebody has said how W&B is to be reached, or that it is not: in the environment or in its files."""
    if any(os.environ.get(name) for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    settings = wandb.setup().settings
    if settings.mode != "online" or settings.api_key:
        return True
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(settings.base_url).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return False
    return found is not None
