"""What torchmetrics objects have counted on workers that are no more when fewer go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics
from torch import nn

from shipline.train.checkpoints.restore import own_state
from shipline.train.metrics.objects import _state, epoch_value, load_metric_states, metric_states

WORKERS = 3


class Holder(nn.Module):
    """A module with one metric."""

    def __init__(self, metric: Any) -> None:
        super().__init__()
        self.metric = metric


METRICS: dict[str, Any] = {
    "a mean": torchmetrics.MeanMetric,
    "the greatest": torchmetrics.MaxMetric,
    "the least": torchmetrics.MinMetric,
    "rows": torchmetrics.CatMetric,
}


def values(worker: int) -> torch.Tensor:
    return torch.arange(4.0) * (worker + 1) - worker


def states_of(metric: Any) -> list[dict[str, Any]]:
    """What a checkpoint keeps of each worker; what is not looked at here is empty."""
    found = []
    for worker in range(WORKERS):
        module = Holder(metric())
        module.metric.update(values(worker))
        found.append({"rng": None, "train_feed": None, "epoch_metrics": {}, "metric_states": metric_states(module)})
    return found


def gone_on(metric: Any, states: list[dict[str, Any]], workers: int) -> list[Any]:
    """The metrics of so many workers, which take more values."""
    found = []
    for worker in range(workers):
        module = Holder(metric())
        load_metric_states(module, own_state({"workers": states}, worker, workers)["metric_states"])
        module.metric.update(torch.tensor([9.0 + worker]))
        found.append(module.metric)
    return found


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("name", METRICS)
def test_nothing_that_was_counted_is_lost(name: str, workers: int) -> None:
    """Whoever counted it, each value counts once."""
    metric = METRICS[name]
    expected = metric()
    for worker in range(WORKERS):
        expected.update(values(worker))
    for worker in range(workers):
        expected.update(torch.tensor([9.0 + worker]))
    on = gone_on(metric, states_of(metric), workers)
    found = epoch_value(on[0], lambda _: [[(_state(each), each._update_count)] for each in on], workers)
    whole = expected.compute()
    torch.testing.assert_close(
        found.sort().values if found.ndim else found, whole.sort().values if whole.ndim else whole
    )


def test_states_that_do_not_add_up_are_those_of_the_first() -> None:
    """Merged ones could take no further rows."""
    states = []
    for worker in range(WORKERS):
        module = Holder(torchmetrics.PearsonCorrCoef())
        module.metric.update(values(worker), values(worker) ** 2)
        states.append({"rng": None, "train_feed": None, "epoch_metrics": {}, "metric_states": metric_states(module)})
    alone, found = torchmetrics.PearsonCorrCoef(), Holder(torchmetrics.PearsonCorrCoef())
    alone.update(values(0), values(0) ** 2)
    load_metric_states(found, own_state({"workers": states}, 0, 1)["metric_states"])
    torch.testing.assert_close(found.metric.compute(), alone.compute())
