"""Lightning's own callbacks that reach into its Trainer, as ours that do the same."""
# ruff: noqa: SLF001 -- some of their settings have no public name

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shipline.train.callbacks.base import Callback
from shipline.train.callbacks.device_stats import DeviceStatsMonitor
from shipline.train.callbacks.early_stopping import EarlyStopping
from shipline.train.callbacks.exception_checkpoint import OnExceptionCheckpoint
from shipline.train.callbacks.gradient_accumulation import GradientAccumulationScheduler
from shipline.train.callbacks.lr_monitor import LearningRateMonitor
from shipline.train.callbacks.progress import ProgressBar
from shipline.train.callbacks.rich_progress import RichProgressBar
from shipline.train.callbacks.spike import SpikeDetection
from shipline.train.callbacks.throughput import ThroughputMonitor
from shipline.train.callbacks.timer import Timer
from shipline.train.callbacks.tqdm_progress import TQDMProgressBar


def adopted(name: str, item: Any) -> Callback | None:
    """Return ours for an `item` of Lightning's class `name`, with its settings; None where it can run as it is."""
    make = _OURS.get(name)
    return None if make is None else make(item)


def _early_stopping(item: Any) -> Callback:
    return EarlyStopping(
        item.monitor,
        min_delta=abs(item.min_delta),
        patience=item.patience,
        verbose=item.verbose,
        mode=item.mode,
        strict=item.strict,
        check_finite=item.check_finite,
        stopping_threshold=item.stopping_threshold,
        divergence_threshold=item.divergence_threshold,
        check_on_train_epoch_end=item._check_on_train_epoch_end,
        log_rank_zero_only=item.log_rank_zero_only,
    )


def _spike_detection(item: Any) -> Callback:
    return SpikeDetection(
        mode=item.mode,
        window=item.running_mean.window,
        warmup=item.warmup,
        atol=item.atol,
        rtol=item.rtol,
        exclude_batches_path=item.exclude_batches_path,
        finite_only=item.finite_only,
    )


def _timer(item: Any) -> Callback:
    duration = None if item._duration is None else {"seconds": item._duration}
    return Timer(duration, interval=str(getattr(item._interval, "value", item._interval)), verbose=item._verbose)  # type: ignore[arg-type]


_OURS: dict[str, Callable[[Any], Callback]] = {
    "DeviceStatsMonitor": lambda item: DeviceStatsMonitor(item._cpu_stats),
    "EarlyStopping": _early_stopping,
    "GradientAccumulationScheduler": lambda item: GradientAccumulationScheduler(item.scheduling),
    "LearningRateMonitor": lambda item: LearningRateMonitor(
        item.logging_interval, item.log_momentum, item.log_weight_decay
    ),
    "OnExceptionCheckpoint": lambda item: OnExceptionCheckpoint(item.dirpath, item.filename),
    "ProgressBar": lambda _item: ProgressBar(),
    "RichProgressBar": lambda item: RichProgressBar(min(item.refresh_rate, 10), item._leave),
    "SpikeDetection": _spike_detection,
    "ThroughputMonitor": lambda item: ThroughputMonitor(item.batch_size_fn, item.length_fn, **item.kwargs),
    "Timer": _timer,
    "TQDMProgressBar": lambda item: TQDMProgressBar(item.refresh_rate, item.process_position, item._leave),
}
