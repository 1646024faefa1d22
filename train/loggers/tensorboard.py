"""Metrics for TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from shipline.errors import NotFoundError
from shipline.store import Store, join, open_store
from shipline.train.loggers.library import LibraryLogger
from shipline.train.loggers.place import Place
from shipline.train.loggers.values import flat_params, numbers
from shipline.train.seed import isolate_rng

logger = logging.getLogger(__name__)


class TensorBoardLogger(LibraryLogger):
    """Writes event files into the run's directory: `tensorboard --logdir runs` shows the runs beside each other.

    Args:
        save_dir: URL below which to keep the files, as `<save_dir>/<name>/<version>`; default: in the run's directory.
        name: of the experiment there; default: that of the run. An empty one leaves the level out.
        version: there; default: that of the run.
        log_graph: draw the module, from its `example_input_array`.
        default_hp_metric: give the hyper-parameters a metric, `hp_metric`, until they have a real one: TensorBoard
            shows none without.
        prefix: what names of metrics are to begin with, before a "-".
        sub_dir: a directory further down for the files.
        max_queue: events kept in memory before they are written.
        flush_secs: seconds after which they are written in any case.
    """

    def __init__(
        self,
        save_dir: str | None = None,
        name: str | None = None,
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | None = None,
        max_queue: int = 10,
        flush_secs: int = 120,
    ) -> None:
        super().__init__("tensorboard", Place(save_dir, name, version), prefix)
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._sub_dir = sub_dir
        self._options = {"max_queue": max_queue, "flush_secs": flush_secs}
        self._resumed = False
        self._purge_step: int | None = None
        self._kept: dict[str, Any] | None = None

    # ---- resuming ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return how far the event files go: a resumed run cuts off what was written after that."""
        with self._lock:
            if self._library is None:
                return {}
            self._library.flush()
            file = _event_file(self._library)
            return {"file": file.name, "bytes": file.stat().st_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up how far the files are to be kept."""
        self._kept = state

    def open(self, run: Store | None, resumed_step: int | None) -> None:
        """Begin a new event file; of those of a resumed run, keep what was written until it was saved."""
        super().open(run, resumed_step)
        kept, self._kept = self._kept, None
        self._purge_step, self._resumed = None, resumed_step is not None
        store = self._store()
        if resumed_step is None or store is None:
            return
        if kept is None or not _cut(store, kept["file"], kept["bytes"]):
            self._purge_step = resumed_step  # TensorBoard itself then hides what earlier files have from there

    def _store(self) -> Store | None:
        store = super()._store()
        return store if store is None or self._sub_dir is None else open_store(join(store.url, self._sub_dir))

    # ---- writing -----------------------------------------------------------------------------------------------------

    def _start(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what TensorBoard itself is built on
            from torch.utils.tensorboard import SummaryWriter

            path = self._open_files().path
            writer = SummaryWriter(str(path), purge_step=self._purge_step, **self._options)
        self._purge_step = None
        return writer

    def _flush(self) -> None:
        self._library.flush()

    def _stop(self, status: str) -> None:
        self._library.close()

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics; a metric that is a dict of numbers becomes one chart of several curves."""
        if not self._is_placed:
            return
        with self._lock:
            plain = {name: value for name, value in metrics.items() if not isinstance(value, Mapping)}
            for name, value in numbers(plain, self._prefix).items():
                self.experiment.add_scalar(name, value, step)
            for name in metrics.keys() - plain.keys():
                self.experiment.add_scalars(f"{self._prefix}-{name}" if self._prefix else name, metrics[name], step)

    def log_hyperparams(self, params: Any, metrics: Mapping[str, Any] | None = None, step: int | None = None) -> None:
        """Take the arguments, for the page of hyper-parameters.

        Args:
            params: a dict or Namespace.
            metrics: what the page compares runs by.
            step: of these metrics.
        """
        if not self._is_placed:
            return
        values = metrics or ({"hp_metric": -1.0} if self._default_hp_metric and not self._resumed else {})
        with self._lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch.utils.tensorboard.summary import hparams

            writer = self.experiment._get_file_writer()  # noqa: SLF001 -- add_hparams would make another run
            for summary in hparams(flat_params(params), dict(values)):  # type: ignore[no-untyped-call]
                writer.add_summary(summary)
            if values:
                self.log_metrics(dict(values), step or 0)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Draw the module, where that was asked for; one that cannot be traced is left out, with a warning."""
        example = getattr(model, "example_input_array", None) if input_array is None else input_array
        if not self._log_graph or not self._is_placed:
            return
        if example is None:
            logger.warning("TensorBoardLogger has log_graph=True, but the module has no example_input_array: set one.")
            return
        device = next(iter(model.parameters()), torch.empty(0)).device
        modes = [(part, part.training) for part in model.modules()]
        try:
            with self._lock, warnings.catch_warnings(), isolate_rng(), torch.no_grad():
                warnings.simplefilter("ignore")  # tracing warns of itself
                model.eval()
                self.experiment.add_graph(model, _on(example, device))
        except Exception as error:
            logger.warning("The module's graph is not logged: %s", error)
        finally:
            for part, training in modes:
                part.training = training


def _on(example: Any, device: torch.device) -> Any:
    if isinstance(example, torch.Tensor):
        return example.to(device)
    return tuple(_on(item, device) for item in example) if isinstance(example, list | tuple) else example


def _event_file(writer: Any) -> Path:
    return Path(writer._get_file_writer().event_writer._file_name)  # noqa: SLF001 -- it has no public name


def _cut(store: Store, file: str, size: int) -> bool:
    """Keep `size` bytes of the file, and none of later ones; say whether the file was long enough."""
    try:
        data = store.read(file)
    except NotFoundError:
        return False
    if len(data) < size:
        return False
    if len(data) > size:
        store.write(file, data[:size])
    for name in store.list():
        if name > file and ".tfevents." in name:
            with contextlib.suppress(NotFoundError):
                store.remove(name)
    return True
