"""The weights of a module that was trained elsewhere: kept once, and refused where nobody could compute with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import prune

import shipline as sl
from shipline.errors import ConfigError, GateError
from shipline.export import Source
from shipline.serve.golden import GoldenRows

SCANS = torch.tensor(load_digits().data[:200] / 16, dtype=torch.float32)


def test_a_module_is_kept_as_it_is_and_its_weights_once() -> None:
    net = nn.Sequential(nn.Linear(64, 2), nn.BatchNorm1d(2))
    source = Source.of_module(net)
    with torch.no_grad():
        net[0].weight.zero_()  # type: ignore[operator]
    one, other = source.build(), source.build()
    assert one is not other
    assert one[0] is not other[0]  # type: ignore[index]
    for (name, kept), again in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert kept.data_ptr() == again.data_ptr() != net.state_dict()[name].data_ptr()
    assert one.state_dict()["0.weight"].abs().sum() > 0


def test_weights_that_are_not_finite() -> None:
    net = nn.Linear(64, 2)
    with torch.no_grad():
        net.weight[1, 3] = float("nan")
    with pytest.raises(GateError, match=r"The Linear has 1 NaN or infinite values in 'weight' \(128 in all\)"):
        Source.of_module(net)


def test_a_buffer_may_be_infinite_as_masks_of_attention_are() -> None:
    net = nn.Linear(64, 2)
    net.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))
    assert torch.isneginf(Source.of_module(net).build().mask).sum() == 6
    net.mask[0] = float("nan")  # type: ignore[index,operator]
    with pytest.raises(GateError, match=r"The Linear has 4 NaN or infinite values in 'mask' \(16 in all\)"):
        Source.of_module(net)


def test_weights_that_are_not_there_yet() -> None:
    with pytest.raises(GateError, match=r"The Sequential has a lazy layer that has no weights yet: '0\.weight'"):
        Source.of_module(nn.Sequential(nn.LazyLinear(2)))


def test_a_tensor_that_is_not_dense() -> None:
    net = nn.Linear(4, 2)
    net.register_buffer("edges", torch.eye(4).to_sparse())
    with pytest.raises(GateError, match=r"The Linear has 'edges' as a torch\.sparse_coo, which .*`\.to_dense\(\)`"):
        Source.of_module(net)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("computed", [lambda net: prune.l1_unstructured(net, "weight", 0.5), nn.utils.weight_norm])
def test_weights_that_are_computed_in_each_forward(computed: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    computed(net[0])
    net.last = net(SCANS)  # type: ignore[assignment] -- what a forward may leave behind
    artifact = sl.export(net, rows=SCANS, to=str(tmp_path / "m"))
    rows = GoldenRows(artifact)
    with torch.no_grad():
        answers = net.eval()(torch.from_numpy(rows.inputs["input"])).numpy()
    np.testing.assert_allclose(rows.outputs["output"], answers, atol=1e-5)
    assert net.last.grad_fn is not None  # type: ignore[union-attr]


def test_a_module_that_cannot_be_copied() -> None:
    net = nn.Linear(64, 2)
    net.last = [net(SCANS)]  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"The Linear cannot be copied, and is not to be changed: RuntimeError"):
        Source.of_module(net)
