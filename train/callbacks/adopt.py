"""Those of Lightning's own callbacks that only its Trainer can run, as ours that do the same."""
# ruff: noqa: SLF001 -- some of their settings have no public name

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shipline.train.callbacks.base import Callback
from shipline.train.callbacks.device_stats import DeviceStatsMonitor
from shipline.train.callbacks.exception_checkpoint import OnExceptionCheckpoint
from shipline.train.callbacks.gradient_accumulation import GradientAccumulationScheduler
from shipline.train.callbacks.progress import ProgressBar
from shipline.train.callbacks.rich_progress import RichProgressBar
from shipline.train.callbacks.throughput import ThroughputMonitor
from shipline.train.callbacks.tqdm_progress import TQDMProgressBar


def adopted(name: str, item: Any) -> Callback | None:
    """Return ours for an `item` of Lightning's class `name`, with its settings; None where it can run as it is.

    Those that can are left alone: what they find stands in their own attributes, where their owner looks for it.
    """
    make = _OURS.get(name)
    return None if make is None else make(item)


_OURS: dict[str, Callable[[Any], Callback]] = {
    "DeviceStatsMonitor": lambda item: DeviceStatsMonitor(item._cpu_stats),
    "GradientAccumulationScheduler": lambda item: GradientAccumulationScheduler(item.scheduling),
    "OnExceptionCheckpoint": lambda item: OnExceptionCheckpoint(item.dirpath, item.filename),
    "ProgressBar": lambda _item: ProgressBar(),
    "RichProgressBar": lambda item: RichProgressBar(min(item.refresh_rate, 10), item._leave),
    "ThroughputMonitor": lambda item: ThroughputMonitor(item.batch_size_fn, item.length_fn, **item.kwargs),
    "TQDMProgressBar": lambda item: TQDMProgressBar(item.refresh_rate, item.process_position, item._leave),
}
