"""torchmetrics objects that are logged as they are: found in the module, merged over workers, kept in checkpoints."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from shipline.errors import TrainingError

Gather = Callable[[Any], list[Any]]
_ADD_UP = ("dim_zero_sum", "dim_zero_max", "dim_zero_min", "dim_zero_cat")


def is_metric(value: Any) -> bool:
    """Whether the value is a torchmetrics.Metric; none can be where torchmetrics was never imported."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def path_of(metric: Any, module: nn.Module | None) -> str | None:
    """Return the attribute of the module that holds the metric."""
    if module is None:
        return None
    return next((name for name, part in module.named_modules() if part is metric), None)


def step_value(name: str, metric: Any) -> torch.Tensor:
    """Return the metric's value for this batch: what calling it with the batch returned."""
    value = getattr(metric, "_forward_cache", None)
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise TrainingError(
            f"log({name!r}) on_step needs the metric's value for the batch, one number: call self.{name}(...) instead "
            "of .update(...), or log it with on_step=False, on_epoch=True."
        )
    return value


def metric_states(module: nn.Module) -> dict[str, Any]:
    """Return the state of every metric in the module, by name, where it has taken something since its last reset."""
    return {
        name: {"count": part._update_count, "state": _state(part)}  # noqa: SLF001
        for name, part in module.named_modules()
        if is_metric(part) and part._update_count  # noqa: SLF001
    }


def load_metric_states(module: nn.Module, everybody: list[dict[str, Any]]) -> None:
    """Put the metrics of the module into states of `metric_states`: this worker's, and of those that are no more.

    Where states do not add up, as means do not and what a metric merges in its own way, the first alone counts.
    """
    parts = dict(module.named_modules())
    for name in dict.fromkeys(name for states in everybody for name in states):
        if not is_metric(part := parts.get(name)):
            continue
        saved = [states[name] for states in everybody if name in states]
        if len(saved) == 1 or not _adds_up(part):
            _set_state(part, saved[0]["state"], saved[0]["count"])
        else:
            _set_state(part, _merged(part, [each["state"] for each in saved]), sum(each["count"] for each in saved))


def _adds_up(part: Any) -> bool:
    """Whether states that were merged can be merged again."""
    kept = part._defaults  # noqa: SLF001
    return all(
        isinstance(kept[name], list) or getattr(reduction, "__name__", "") in _ADD_UP
        for name, reduction in part._reductions.items()  # noqa: SLF001
    )


def epoch_value(metric: Any, gather: Gather, world_size: int) -> Any:
    """Return the metric's value over all workers' updates.

    The states are merged here and not by torchmetrics, which waits for ever where one worker has no row for a metric
    that keeps lists.
    """
    if world_size == 1:
        return metric.compute()
    parts = [part for part in metric.modules() if is_metric(part)]
    before = [(_state(part), part._update_count) for part in parts]  # noqa: SLF001
    everybody = gather([(_on_cpu(state), count) for state, count in before])
    for index, part in enumerate(parts):
        states = [own[index][0] for own in everybody if own[index][1]]
        if states:
            _set_state(part, _merged(part, states), sum(own[index][1] for own in everybody))
    try:
        with _without_own_sync(parts):
            return metric.compute()
    finally:
        for part, (state, count) in zip(parts, before, strict=True):
            _set_state(part, state, count)


def _state(part: Any) -> dict[str, Any]:
    return {name: _copied(getattr(part, name)) for name in part._defaults}  # noqa: SLF001


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [item.cpu() for item in value] if isinstance(value, list) else value.cpu()
        for name, value in state.items()
    }


def _set_state(part: Any, state: dict[str, Any], count: int) -> None:
    for name, value in state.items():
        moved = [item.to(part.device) for item in value] if isinstance(value, list) else value.to(part.device)
        setattr(part, name, moved)
    part._update_count, part._computed = count, None  # noqa: SLF001


def _merged(part: Any, states: list[dict[str, Any]]) -> dict[str, Any]:
    """Reduce the workers' states as `torchmetrics.Metric` does when it synchronises."""
    merged: dict[str, Any] = {}
    for name, reduction in part._reductions.items():  # noqa: SLF001
        values = [state[name] for state in states]
        if isinstance(values[0], list):
            # Workers took turns with the batches: so the rows are in the order in which one worker has them.
            items = [item for turn in zip_longest(*values) for item in turn if item is not None]
            merged[name] = items if reduction is None or not items else [reduction(items)]
        else:
            stacked = torch.stack(values)
            merged[name] = stacked if reduction is None else reduction(stacked)
    return merged


@contextlib.contextmanager
def _without_own_sync(parts: list[Any]) -> Iterator[None]:
    before = [part._to_sync for part in parts]  # noqa: SLF001
    for part in parts:
        part._to_sync = False  # noqa: SLF001
    try:
        yield
    finally:
        for part, sync in zip(parts, before, strict=True):
            part._to_sync = sync  # noqa: SLF001
