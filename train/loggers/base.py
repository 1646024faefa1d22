"""What every logger is."""

from __future__ import annotations

from typing import Any

from shipline.store import Store


class Logger:
    """Takes metrics and settings of a run; called on the first worker only."""

    def open(self, run: Store, resumed_step: int | None) -> None:
        """Begin, or go on after `resumed_step` where a run is resumed; files go below `run`."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Take the run's settings."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take the metrics of an optimizer step."""

    def save(self) -> None:
        """Write what was taken so far."""
