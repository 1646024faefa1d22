"""Channels that are taken out: which, and through what."""

from __future__ import annotations

import functools
import logging
import re
import sys
from typing import Any

import pytest
import torch
from module_pass_conformance import ModulePassConformance, recorded, seeded
from prunable import Attends, Bert, Gated, Residual
from small_modules import Tiny
from torch import nn
from torch.nn import functional as F

from shipline import plugins
from shipline.errors import ConfigError, GateError, MissingExtraError
from shipline.export.passes.base import Material
from shipline.export.passes.prune_channels import PruneChannels
from shipline.export.signature import signature_of

#: Network -> what a width of its layers is before, and after half of what can go is gone.
WIDTHS: dict[type[Tiny], dict[str, tuple[int, int]]] = {
    Tiny: {"net.0": (64, 32), "net.3": (10, 10)},
    Residual: {"stem.0": (32, 16), "block.0": (32, 16), "block.4": (32, 16), "net.3": (10, 10)},
    Gated: {"mix": (32, 16), "net": (10, 10)},
    Attends: {"rows": (32, 32), "encoder.layers.0.linear1": (128, 64), "encoder.layers.0.linear2": (32, 32)},
    Bert: {"bert.pooler.dense": (32, 16), "bert.encoder.layer.1.attention.self.query": (32, 32)},
}


class TestPruneChannels(ModulePassConformance):
    @pytest.fixture
    def made(self) -> PruneChannels:
        return PruneChannels(finetune_epochs=0)

    @pytest.fixture(params=WIDTHS)
    def network(self, request: pytest.FixtureRequest) -> type[Tiny]:
        kind: type[Tiny] = request.param
        return kind

    def check_promise(self, before: nn.Module, after: nn.Module) -> None:
        counts = [sum(weight.numel() for weight in module.parameters()) for module in (before, after)]
        assert counts[1] < 0.9 * counts[0]
        for name, (wide, narrow) in WIDTHS[type(before)].items():  # type: ignore[index]
            for module, width in ((before, wide), (after, narrow)):
                found = module.get_submodule(name).weight.shape[0]
                assert abs(found - width) <= 8 * (wide != narrow), name  # all layers are ranked together


class TestWithHeads(TestPruneChannels):
    @pytest.fixture
    def made(self) -> PruneChannels:
        return PruneChannels(finetune_epochs=0, heads=True)

    @pytest.fixture
    def network(self) -> type[Tiny]:
        return Bert

    def check_promise(self, before: nn.Module, after: nn.Module) -> None:
        for layer in (0, 1):
            attention = after.get_submodule(f"bert.encoder.layer.{layer}.attention")
            for name in ("self.query", "self.key", "self.value"):
                assert attention.get_submodule(name).weight.shape == (16, 32)
            assert attention.get_submodule("output.dense").weight.shape == (32, 16)
            assert after.get_submodule(f"bert.encoder.layer.{layer}.intermediate.dense").weight.shape[0] < 128


def pruned(module: nn.Module, **settings: Any) -> nn.Module:
    rows = recorded(module)
    material = Material(signature_of(module, rows), lambda: rows.inputs)
    return PruneChannels(**{"finetune_epochs": 0, **settings}).apply(module, material)


class Stream(Tiny):
    """A residual around a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1))
        self.net = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10))

    def forward(self, x: torch.Tensor) -> Any:
        x = self.stem(x.unflatten(1, (1, 8, 8)))
        return self.net(x + self.block(x))


def test_what_did_nothing_is_what_goes_and_nothing_changes() -> None:
    """Every third channel is dead all along the stream: the layers that make it, keep it and take it agree which."""
    module = seeded(Stream)
    dead = torch.arange(16) % 3 == 0
    with torch.no_grad():
        for layer in (*module.stem[:2], *module.block):  # type: ignore[index, misc]
            layer.weight[dead] = 0
            layer.bias[dead] = 0
        for layer in (module.block[2], module.net[0]):  # type: ignore[index]
            layer.weight[:, dead] = 0
    x = torch.rand(5, 64)
    narrow = pruned(module, ratio=6 / 16, round_to=1, keep=("net.0",))
    assert [narrow.get_submodule(name).weight.shape[0] for name in ("stem.0", "block.0", "block.2", "net.0")] == [
        10,
        10,
        10,
        16,
    ]
    assert torch.equal(narrow.get_submodule("stem.0").weight, module.get_submodule("stem.0").weight[~dead])
    torch.testing.assert_close(narrow(x), module(x))


def test_heads_that_did_nothing_are_those_that_go_and_nothing_changes() -> None:
    module = seeded(Bert)
    dead = torch.tensor([False, True, False, True]).repeat_interleave(8)  # heads of 8
    with torch.no_grad():
        for layer in module.bert.encoder.layer:  # type: ignore[union-attr]
            layer.attention.self.value.weight[dead] = 0
            layer.attention.self.value.bias[dead] = 0
            layer.attention.output.dense.weight[:, dead] = 0
    names = [name for name, part in module.named_modules() if name.endswith(("intermediate", "pooler"))]
    x = torch.from_numpy(recorded(module).inputs["x"])
    narrow = pruned(module, heads=True, keep=tuple(names))
    for name in ("query", "value"):
        here = f"bert.encoder.layer.1.attention.self.{name}"
        assert torch.equal(narrow.get_submodule(here).weight, module.get_submodule(here).weight[~dead])
    torch.testing.assert_close(narrow(x), module(x))


class OwnAttention(Tiny):
    """Attention whose code says how many heads there are, or how wide one is."""

    def __init__(self, heads: int = -1, width: int = 8) -> None:
        super().__init__()
        self.shape = (heads, width)
        self.parts = nn.ModuleList([nn.Linear(8, 32) for _ in range(3)])
        self.joined, self.net = nn.Linear(32, 16), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> Any:
        rows = x.unflatten(1, (8, 8))
        q, k, v = (part(rows).unflatten(2, self.shape).transpose(1, 2) for part in self.parts)
        return self.net(
            self.joined(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).relu().flatten(1)
        )


def test_heads_go_where_the_code_tells_them_by_shapes() -> None:
    by_width, by_number = seeded(OwnAttention), seeded(functools.partial(OwnAttention, 4, -1))
    assert pruned(by_width, heads=True).get_submodule("parts.0").weight.shape == (16, 8)
    with pytest.raises(GateError, match=r"Without channels of 'parts\.\d' it answers otherwise than if they were zero"):
        pruned(by_number, heads=True)


@pytest.mark.parametrize("network", [Residual, Gated])
@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_layers_keep_multiples(network: type[Tiny], round_to: int) -> None:
    narrow = pruned(seeded(network), ratio=0.6, round_to=round_to)
    widths = [part.out_channels for part in narrow.modules() if isinstance(part, nn.Conv2d)]
    assert all(width % round_to == 0 for width in widths), widths


@pytest.mark.parametrize("importance", ["l1", "l2"])
@pytest.mark.parametrize("ratio", [0.9, 0.99])
def test_no_layer_is_closed(ratio: float, importance: Any) -> None:
    narrow = pruned(seeded(Residual), ratio=ratio, importance=importance, round_to=1)
    narrow(torch.rand(2, 64))
    assert all(min(weight.shape, default=1) > 0 for weight in narrow.parameters())
    assert sum(weight.numel() for weight in narrow.parameters()) < 3000


def test_layers_that_are_named_keep_their_channels() -> None:
    module = seeded(Residual)
    narrow = pruned(module, keep=("stem", "net.0"))
    for name, width in (("stem.0", 32), ("block.4", 32), ("net.0", 32)):
        assert narrow.get_submodule(name).weight.shape[0] == width
    assert narrow.get_submodule("block.2").weight.shape[0] < 64
    with pytest.raises(ConfigError, match=r"keep with 'sten'; there is no such layer\. Did you mean 'stem'\?"):
        pruned(module, keep=("sten",))


class Shares(Tiny):
    """Its first layer is its second, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(self.c(self.b(self.a(x).relu()).relu()).relu())


def test_a_weight_that_layers_share_stays() -> None:
    narrow = pruned(seeded(Shares))
    assert [narrow.get_submodule(name).weight.shape[0] for name in "abc"] == [64, 64, 32]
    assert narrow.a.weight is narrow.b.weight


def test_weights_that_are_not_trained_stay_so() -> None:
    module = seeded(Residual)
    module.stem.requires_grad_(requires_grad=False)
    narrow = pruned(module)
    assert {name.partition(".")[0] for name, weight in narrow.named_parameters() if not weight.requires_grad} == {
        "stem"
    }
    assert narrow.get_submodule("stem.0").weight.shape[0] < 32


class Counts(Tiny):
    """Its forward says how wide a layer is."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.net[3](self.net[1](self.net[0](x)).reshape(-1, 64))


class Turns(Tiny):
    """Places and channels change places, of which there are equally many."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.net = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> Any:
        return self.net(self.b(self.a(x.unflatten(1, (16, 4))).transpose(1, 2)).flatten(1))


class Divides(Tiny):
    """By how many channels there are."""

    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.net[0](x)
        return self.net[3](hidden / hidden.new_tensor(hidden.shape[1]))


class Chooses(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return self.net(x).argmax(1).float()


class Plain(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Counts, r"all its channels reach outputs, .*\. Without channels of 'net\.0' it fails: RuntimeError"),
        (Turns, r"Without channels of 'a' it fails: .*"),
        (Divides, r"Without channels of 'net\.0' it answers otherwise than if they were zero"),
        (Chooses, "none of its outputs has a gradient"),
        (Plain, "all its channels reach outputs, attention or embeddings"),
    ],
)
def test_what_cannot_be_followed_is_refused(network: type[Tiny], said: str) -> None:
    with pytest.raises(GateError, match=rf"{network.__name__} cannot be pruned, so nothing was published: .*{said}"):
        pruned(seeded(network))


class Mixed(Counts):
    """Some of its channels can go, whatever its code says of others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(self.first(x))


def test_only_channels_that_the_code_counts_on_stay(caplog: pytest.LogCaptureFixture) -> None:
    module = seeded(Mixed)
    with caplog.at_level(logging.INFO, "shipline"):
        narrow = pruned(module)
    assert narrow.get_submodule("net.0").weight.shape[0] == 64
    assert narrow.get_submodule("first.0").weight.shape[0] == 32
    [record] = [each for each in caplog.records if each.name.startswith("shipline.export.passes")]
    assert record.getMessage().startswith("Some channels of Mixed stay. Without channels of 'net.0' it fails:")


def test_what_is_too_narrow_is_refused() -> None:
    with pytest.raises(GateError, match=r"too narrow for ratio=0\.05 and round_to=64; lower round_to"):
        pruned(seeded(Tiny), ratio=0.05, round_to=64)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        *(({"ratio": value}, f"ratio={value!r}; set a share between 0 and 1") for value in (0, 1, -0.5, True, "half")),
        *(({"finetune_epochs": v}, f"finetune_epochs={v!r}; set a whole number from 0") for v in (-1, 1.5, True)),
        *(({"round_to": value}, f"round_to={value!r}; set a whole number from 1 on") for value in (0, 2.5, None)),
        ({"importance": "taylor"}, "importance='taylor'; choose one of l1, l2"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        PruneChannels(**settings)


def test_without_the_library_it_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "shipline.export.passes.channels", raising=False)
    monkeypatch.delitem(sys.modules, "shipline.export.passes.narrowing", raising=False)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'shipline\[prune\]'"):
        pruned(seeded(Tiny))


def test_it_is_found_by_its_name() -> None:
    assert plugins.load("pass", "prune-channels") is PruneChannels
