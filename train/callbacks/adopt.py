"""Those of Lightning's own callbacks that only its Trainer can run, as ours that do the same."""
# ruff: noqa: SLF001 -- some of their settings have no public name

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shipline.errors import ConfigError
from shipline.train.callbacks.batch_size_finder import BatchSizeFinder
from shipline.train.callbacks.callback import Callback
from shipline.train.callbacks.device_stats_monitor import DeviceStatsMonitor
from shipline.train.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from shipline.train.callbacks.lr_finder import LearningRateFinder
from shipline.train.callbacks.model_checkpoint import ModelCheckpoint
from shipline.train.callbacks.model_summary import ModelSummary
from shipline.train.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from shipline.train.callbacks.progress import ProgressBar, RichProgressBar, TQDMProgressBar
from shipline.train.callbacks.throughput_monitor import ThroughputMonitor


def adopted(item: Any, packages: tuple[str, ...]) -> Callback | None:
    """Return ours for an `item` of one of Lightning's own classes, with its settings; None where it can run as it is.

    Those that can are left alone: what they find stands in their own attributes, where their owner looks for it.

    Raises:
        ConfigError: its class is derived from one that only Lightning's Trainer can run.
    """
    own = [cls.__name__ for cls in type(item).__mro__ if cls.__module__.partition(".")[0] in packages]
    name = own[0] if own else ""
    if name in _OURS and type(item).__name__ == name and type(item).__module__.partition(".")[0] in packages:
        ours = _OURS[name](item)
        ours.stands_for = item
        return ours
    if name in ("LearningRateFinder", "BatchSizeFinder"):
        raise ConfigError(
            f"{type(item).__name__} is derived from Lightning's {name}, which reaches into Lightning's Trainer: derive "
            f"it from shipline.train.{name}, whose names are the same."
        )
    return None


def _model_checkpoint(item: Any) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=item.dirpath,
        filename=item.filename,
        monitor=item.monitor,
        save_on_exception=item.save_on_exception,
        verbose=item.verbose,
        save_last=item.save_last,
        save_top_k=item.save_top_k,
        save_weights_only=item.save_weights_only,
        mode=item.mode,
        auto_insert_metric_name=item.auto_insert_metric_name,
        every_n_train_steps=item._every_n_train_steps or None,
        train_time_interval=item._train_time_interval,
        every_n_epochs=item._every_n_epochs or None,
        save_on_train_epoch_end=item._save_on_train_epoch_end,
        enable_version_counter=item._enable_version_counter,
    )


def _lr_finder(item: Any) -> LearningRateFinder:
    return LearningRateFinder(
        item._min_lr,
        item._max_lr,
        item._num_training_steps,
        item._mode,
        item._early_stop_threshold,
        item._update_attr,
        item._attr_name,
    )


def _batch_size_finder(item: Any) -> BatchSizeFinder:
    return BatchSizeFinder(
        item._mode,
        item._steps_per_trial,
        item._init_val,
        item._max_trials,
        item._batch_arg_name,
        item._margin,
        item._max_val,
    )


_OURS: dict[str, Callable[[Any], Callback]] = {
    "BatchSizeFinder": _batch_size_finder,
    "DeviceStatsMonitor": lambda item: DeviceStatsMonitor(item._cpu_stats),
    "GradientAccumulationScheduler": lambda item: GradientAccumulationScheduler(item.scheduling),
    "LearningRateFinder": _lr_finder,
    "ModelCheckpoint": _model_checkpoint,
    "ModelSummary": lambda item: ModelSummary(max_depth=item._max_depth),
    "OnExceptionCheckpoint": lambda item: OnExceptionCheckpoint(item.dirpath, item.filename),
    "ProgressBar": lambda _item: ProgressBar(),
    "RichModelSummary": lambda item: ModelSummary(max_depth=item._max_depth),
    "RichProgressBar": lambda item: RichProgressBar(min(item.refresh_rate, 10), item._leave),
    "ThroughputMonitor": lambda item: ThroughputMonitor(item.batch_size_fn, item.length_fn, **item.kwargs),
    "TQDMProgressBar": lambda item: TQDMProgressBar(item.refresh_rate, item.process_position, item._leave),
}

#: What they find, by the names of their attributes.
RESULTS = {
    "BatchSizeFinder": ("optimal_batch_size",),
    "LearningRateFinder": ("optimal_lr",),
    "ModelCheckpoint": (
        "best_k_models", "best_model_path", "best_model_score", "kth_best_model_path", "last_model_path",
    ),
}  # fmt: skip
