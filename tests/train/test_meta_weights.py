"""Modules on the meta device, which have no memory to copy weights into."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from training import Mlp, bare_trainer, new_trainer, same_weights, train_loader, val_loader

import shipline as sl
from shipline.errors import ConfigError
from shipline.train.checkpoints.weights import load_whole
from shipline.train.strategies.meta import materialized, names_of


class Tied(nn.Module):
    """One weight with two names, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.score = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.score.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("count", torch.zeros(1))


def test_they_take_the_tensors_themselves() -> None:
    whole = Tied()
    with torch.device("meta"):
        empty = Tied()
    load_whole(empty, whole.state_dict())
    assert same_weights(empty, whole)
    assert empty.score.weight is empty.embed.weight
    assert (empty.embed.weight.requires_grad, empty.frozen.requires_grad) == (True, False)
    assert isinstance(empty.count, torch.Tensor)
    assert not isinstance(empty.count, nn.Parameter)


def test_others_keep_their_parameters() -> None:
    """Optimizers hold them."""
    module, other = Tied(), Tied()
    before = list(module.parameters())
    load_whole(module, other.state_dict())
    assert same_weights(module, other)
    assert all(one is again for one, again in zip(before, module.parameters(), strict=True))


def test_a_checkpoint_gives_them_its_weights(tmp_path: Path) -> None:
    trained = Mlp()
    run = new_trainer(tmp_path, max_steps=2).fit(trained, train_loader(64), val_loader(32))
    with torch.device("meta"):
        loaded = Mlp.load_from_checkpoint(str(run.last_url))
        given = Mlp()
    assert same_weights(loaded, trained)
    sl.seed_everything(1)
    found = bare_trainer().validate(given, val_loader(32), ckpt_path=run.last_url, verbose=False)
    assert found == bare_trainer().validate(trained, val_loader(32), verbose=False)


def test_each_layer_has_values_of_its_own() -> None:
    """The same from the same seed: also of layers whose names have the same letters in another order."""
    found = []
    for _ in range(2):
        with torch.device("meta"):
            module = nn.Sequential(*(nn.Linear(3, 2) for _ in range(22)))
        sl.seed_everything(5)
        torch.rand(len(found))
        materialized(module, torch.device("cpu"), names_of(module))
        found.append([part.weight.detach() for part in module if isinstance(part, nn.Linear)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert len({tuple(weight.flatten().tolist()) for weight in found[0]}) == 22


def test_what_cannot_get_values_is_named() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

    with torch.device("meta"):
        module = Mlp()
        module.layers.append(Bare())
    with pytest.raises(
        ConfigError, match=r"layers\.4 \(Bare\) was made on the meta device, and has no reset_parameters"
    ):
        bare_trainer(max_steps=1).fit(module, train_loader(32))
