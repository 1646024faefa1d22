"""What every logger is."""

from __future__ import annotations

from typing import Any

from shipline.store import Store
from shipline.train.configurable import Configurable


class Logger(Configurable):
    """Takes metrics and settings of a run; called on the first worker only. Names are PyTorch Lightning's.

    `save` may be called in another thread than the rest.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return what says how far the records go: plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of `state_dict`; `open` follows."""

    def open(self, run: Store | None, resumed_step: int | None) -> None:
        """Begin; or go on where a run is resumed, with its `resumed_step`-th step: what was logged from there is void.

        Args:
            run: below it files go; None where the run has no directory.
            resumed_step: of the axis that `log_metrics` gets.
        """

    @property
    def experiment(self) -> Any:
        """What the logger writes with: the object of the library behind it."""
        return None

    @property
    def name(self) -> str | None:
        """The name of the experiment."""
        return None

    @property
    def version(self) -> str | int | None:
        """The version of the experiment."""
        return None

    @property
    def log_dir(self) -> str | None:
        """URL of the directory that holds the files."""
        return None

    @property
    def save_dir(self) -> str | None:
        """URL of the directory below which it was told to keep its files."""
        return None

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Take the arguments that the module was made with."""

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Take the module that is trained, for those that draw it."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics of a step, counted from 0."""

    def save(self) -> None:
        """Write what was taken so far."""

    def finalize(self, status: str) -> None:
        """End: "success" or "failed". More may come all the same: what a test after the fit logs."""
