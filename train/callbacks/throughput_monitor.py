"""How much a run gets done in a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from shipline.errors import ConfigError
from shipline.train.accelerators.peak import peak_flops
from shipline.train.callbacks.callback import Callback
from shipline.train.loops.logging import log_values
from shipline.train.metrics import rows_of

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer


class Throughput:
    """Rates over the last updates; what they are called is Lightning Fabric's.

    Args:
        world_size: workers that do as much as this one; rates of all together come beside those of this device.
        window_size: updates that rates are taken over; before there are so many there are none.
        separator: between the parts of a name.
        available_flops: what a device can do in a second, for the share of it that is made use of (`device/mfu`).
    """

    def __init__(
        self, world_size: int, window_size: int = 100, separator: str = "/", available_flops: float | None = None
    ) -> None:
        self.world_size = world_size
        self.separator = separator
        self.available_flops = available_flops
        self._updates: deque[tuple[float, int, int, int | None, int | None]] = deque(maxlen=window_size)

    def update(
        self, *, time: float, batches: int, samples: int, lengths: int | None = None, flops: int | None = None
    ) -> None:
        """Take totals since the beginning: seconds, batches, samples, their items; and the FLOPs of the last batch."""
        self._updates.append((time, batches, samples, lengths, flops))

    def compute(self) -> dict[str, float]:
        """Return the totals, and the rates where the window is full."""
        if not self._updates:
            return {}
        last, first = self._updates[-1], self._updates[0]
        found: dict[str, float] = {"time": last[0], "batches": last[1], "samples": last[2]}
        if last[3] is not None:
            found["lengths"] = last[3]
        seconds = last[0] - first[0]
        if len(self._updates) == self._updates.maxlen and seconds > 0:
            for index, name in enumerate(("batches", "samples", "items"), 1):
                if (before := first[index]) is not None and (now := last[index]) is not None:
                    found |= self._rates(name, (now - before) / seconds)
            flops = [update[4] for update in self._updates if update[4] is not None]
            if len(flops) == len(self._updates):
                found |= self._rates("flops", sum(flops[1:]) / seconds)
        return found

    def _rates(self, name: str, of_device: float) -> dict[str, float]:
        found = {f"device{self.separator}{name}_per_sec": of_device}
        if self.world_size > 1:
            found[f"{name}_per_sec"] = of_device * self.world_size
        if name == "flops" and self.available_flops:
            found[f"device{self.separator}mfu"] = of_device / self.available_flops
        return found


class _Clock:
    """What a stage has done since it began."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.began = self.updated = time.perf_counter()
        self.batches = self.samples = 0
        self.lengths: int | None = None


class ThroughputMonitor(Callback):
    """Gives loggers how many batches, samples, items and FLOPs there were in a second, and the totals of each.

    Names are Lightning's: `train/device/samples_per_sec`, `validate/time`. A module with an attribute `flops_per_batch`
    has its FLOPs counted, and the share of the device's peak (`train/device/mfu`) where that is known.

    Args:
        batch_size_fn: the number of samples of a batch; default: the length of its first tensor.
        length_fn: the number of items (tokens, say) of a batch.
        window_size: batches that rates are taken over.
        separator: between the parts of a name.
        available_flops: what one device can do in a second; default: known of common ones.
    """

    def __init__(
        self,
        batch_size_fn: Callable[[Any], int] | None = None,
        length_fn: Callable[[Any], int] | None = None,
        window_size: int = 100,
        separator: str = "/",
        available_flops: float | None = None,
    ) -> None:
        if window_size < 2:
            raise ConfigError(f"ThroughputMonitor has window_size={window_size}; a rate needs 2 batches at least.")
        self.batch_size_fn = batch_size_fn or rows_of
        self.length_fn = length_fn
        self.window_size = window_size
        self.separator = separator
        self._given_flops = self.available_flops = available_flops
        self._clocks: dict[str, _Clock] = {}
        self._validated = 0  # batches of all validations of a fit: the axis of what they log

    def state_dict(self) -> dict[str, Any]:
        """Return how many batches were validated; rates begin anew where a run is resumed."""
        return {"validated": self._validated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up how many batches were validated."""
        self._validated = state["validated"]

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Forget the stage before, and find out what the device can do."""
        self._clocks, self._validated = {}, 0
        self.available_flops = self._given_flops
        if self.available_flops is None:
            self.available_flops = peak_flops(trainer.device, trainer.precision)

    def teardown(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Forget what was measured."""
        self._clocks = {}

    # ---- what is measured --------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock."""
        self._start(trainer, "train")

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the batch, and log once its step is done."""
        if "train" not in self._clocks:
            return
        self._update(trainer, module, "train", batch)
        progress = trainer.progress
        stepped = progress.last or progress.batches % trainer.accumulate_grad_batches == 0
        if stepped and trainer.logs_this_step():
            self._log(trainer, "train")

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock."""
        if not trainer.sanity_checking:
            self._start(trainer, "validate")

    def on_validation_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the batch."""
        if "validate" in self._clocks:
            self._validated += 1
        self._evaluated(trainer, module, "validate", batch)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Leave what the validation took out of the training's time."""
        train, validation = self._clocks.get("train"), self._clocks.pop("validate", None)
        if train is not None and validation is not None:
            train.began += validation.updated - train.updated

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock."""
        self._start(trainer, "test")

    def on_test_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the batch."""
        self._evaluated(trainer, module, "test", batch)

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Start the clock."""
        self._start(trainer, "predict")

    def on_predict_batch_end(
        self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the batch."""
        self._evaluated(trainer, module, "predict", batch)

    # ---- how ---------------------------------------------------------------------------------------------------------

    def _start(self, trainer: Trainer, stage: str) -> None:
        if trainer.is_global_zero:
            throughput = Throughput(trainer.world_size, self.window_size, self.separator, self.available_flops)
            self._clocks[stage] = _Clock(throughput)

    def _evaluated(self, trainer: Trainer, module: Module, stage: str, batch: Any) -> None:
        if stage not in self._clocks:  # not the first worker, or the few batches tried before training
            return
        self._update(trainer, module, stage, batch)
        every = trainer.log_every_n_steps
        if every and self._clocks[stage].batches % every == 0:
            self._log(trainer, stage, self._validated or self._clocks[stage].batches)

    def _update(self, trainer: Trainer, module: Module, stage: str, batch: Any) -> None:
        if trainer.device.type != "cpu":
            torch.accelerator.synchronize(trainer.device)  # or what was asked for would count as done
        clock = self._clocks[stage]
        clock.updated = time.perf_counter()
        clock.batches += 1
        clock.samples += self._count("batch_size_fn", self.batch_size_fn, batch)
        if self.length_fn is not None:
            clock.lengths = (clock.lengths or 0) + self._count("length_fn", self.length_fn, batch)
        clock.throughput.update(
            time=clock.updated - clock.began,
            batches=clock.batches,
            samples=clock.samples,
            lengths=clock.lengths,
            flops=getattr(module, "flops_per_batch", None),
        )

    @staticmethod
    @torch.no_grad()
    def _count(name: str, function: Callable[[Any], int], batch: Any) -> int:
        found = function(batch)
        if int(found) < 1:
            raise ConfigError(f"ThroughputMonitor's {name} returned {found} of a batch: return how many it holds.")
        return int(found)

    def _log(self, trainer: Trainer, stage: str, step: int | None = None) -> None:
        found = self._clocks[stage].throughput.compute()
        log_values(trainer, {f"{stage}{self.separator}{name}": float(value) for name, value in found.items()}, step)
