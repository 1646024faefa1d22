"""How busy the devices are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from shipline.errors import ConfigError
from shipline.train.accelerators.cpu import CpuAccelerator
from shipline.train.callbacks.callback import Callback
from shipline.train.loops.logging import log_values

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer


class DeviceStatsMonitor(Callback):
    """Gives loggers what the accelerator counts, every `log_every_n_steps` steps, before and after a batch.

    Names are Lightning's: `DeviceStatsMonitor.on_train_batch_start/cpu_percent`. On the CPU these are the shares of
    processor, memory and swap in use, of the whole machine; elsewhere what the device's allocator counts.

    Args:
        cpu_stats: True logs those of the CPU beside those of an accelerator, False logs none of the CPU; default: where
            the CPU is the accelerator.
    """

    def __init__(self, cpu_stats: bool | None = None) -> None:
        self.cpu_stats = cpu_stats
        self._evaluated = 0

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Ask once, so that what is missing is found now, and shares are those of the time from here on.

        Raises:
            ConfigError: nobody would take what it logs.
            MissingExtraError: psutil is needed.
        """
        if stage != "fit":
            return
        if not trainer.loggers and not trainer.fast_dev_run:
            raise ConfigError("DeviceStatsMonitor has no logger to write to: give the Trainer one, or leave it out.")
        self._stats(trainer)

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        """Log."""
        if trainer.logs_this_step():
            self._log(trainer, "on_train_batch_start")

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log."""
        if trainer.logs_this_step():
            self._log(trainer, "on_train_batch_end")

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Begin to count."""
        self._evaluated = 0

    def on_validation_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log."""
        self._evaluated += 1
        self._log_evaluation(trainer, "on_validation_batch_start")

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log."""
        self._log_evaluation(trainer, "on_validation_batch_end")

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Begin to count."""
        self._evaluated = 0

    def on_test_batch_start(
        self, trainer: Trainer, module: Module, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log."""
        self._evaluated += 1
        self._log_evaluation(trainer, "on_test_batch_start")

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log."""
        self._log_evaluation(trainer, "on_test_batch_end")

    def _log_evaluation(self, trainer: Trainer, hook: str) -> None:
        every = trainer.log_every_n_steps
        if every and self._evaluated % every == 0 and not trainer.sanity_checking:
            self._log(trainer, hook)

    def _log(self, trainer: Trainer, hook: str) -> None:
        prefix = f"{type(self).__qualname__}.{hook}"
        values = {f"{prefix}/{name}": float(value) for name, value in self._stats(trainer).items()}
        log_values(trainer, values, trainer.progress.stepped_batches)

    def _stats(self, trainer: Trainer) -> dict[str, Any]:
        cpu = trainer.device.type == "cpu"
        if cpu and self.cpu_stats is False:
            return {}
        stats = trainer.accelerator.get_device_stats(trainer.device)
        if self.cpu_stats and not cpu:
            stats = stats | CpuAccelerator("cpu").get_device_stats(torch.device("cpu"))
        return stats
