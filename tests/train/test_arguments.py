"""The arguments of a module: which of them a checkpoint keeps, and which must be given again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Thing
from torch import nn
from training import Mlp, Scripted, new_trainer, numbers

from shipline.errors import ConfigError


class Arguments(Scripted):
    """A module with arguments of every kind."""

    def __init__(self, plain: Any, other: Any = None, *rest: Any, named: int = 1, **more: Any) -> None:
        super().__init__()
        self.given = (plain, other, rest, named, more)


def test_arguments_are_kept_by_name_with_their_defaults() -> None:
    assert Arguments(1, named=2, extra=3).hparams == {"plain": 1, "other": None, "named": 2, "extra": 3}
    assert Arguments(plain=[1]).hparams == {"plain": [1], "other": None, "named": 1}


def test_arguments_are_read_by_attribute_as_in_lightning() -> None:
    module = Arguments(1, named=2)
    assert module.hparams.named == module.hparams["named"] == 2
    with pytest.raises(AttributeError, match=r"There is no argument 'nmaed'. Did you mean 'named'\?"):
        _ = module.hparams.nmaed


class Saves(Scripted):
    """Chooses which of its arguments are kept."""

    def __init__(self, a: int, b: int, c: int, *names: str, ignore: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters(*names, ignore=ignore)


@pytest.mark.parametrize(
    ("names", "ignore", "kept"),
    [((), None, {"a", "b", "c", "ignore"}), (("a", "c"), None, {"a", "c"}), ((), "b", {"a", "c", "ignore"}),
     ((), ["a", "b", "ignore"], {"c"})],
)  # fmt: skip
def test_save_hyperparameters_chooses(names: tuple[str, ...], ignore: Any, kept: set[str]) -> None:
    assert set(Saves(1, 2, 3, *names, ignore=ignore).hparams) == kept


class Base(Scripted):
    """Keeps arguments that the class derived from it gives or leaves out."""

    def __init__(self, lr: float = 0.1, depth: int = 2, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters("lr", "momentum") if depth == 1 else self.save_hyperparameters(ignore="depth")
        self.rate = self.hparams.lr


class Derived(Base):
    """Has an argument of its own, and gives one of its base a value."""

    def __init__(self, width: int, depth: int = 2) -> None:
        super().__init__(lr=0.5, depth=depth, momentum=0.9)
        if depth == 1:
            self.save_hyperparameters("width")


@pytest.mark.parametrize("depth", [1, 2])
def test_those_of_a_base_class_are_kept_too_and_the_module_is_rebuilt_with_its_own(tmp_path: Path, depth: int) -> None:
    module = Derived(3, depth)
    assert dict(module.hparams) == {"width": 3, "lr": 0.5, "momentum": 0.9}
    run = new_trainer(tmp_path, max_epochs=1).fit(module, numbers(1))
    assert run.checkpoint.manifest.hyper_parameters == {"width": 3}
    assert Derived.load_from_checkpoint(str(run.best_url)).rate == 0.5


class Config(Scripted):
    """Keeps what is in its one argument."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(config)


def test_what_is_in_an_argument_is_no_argument_of_the_constructor(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Config({"lr": 0.5}), numbers(1))
    assert Config.load_from_checkpoint(str(run.best_url)).hparams.lr == 0.5


def test_wrong_arguments_are_the_constructors_own_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'hiden'"):
        Mlp(hiden=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (1, 1),
        (1.5, 1.5),
        ("a", "a"),
        (None, None),
        ([1, "b"], [1, "b"]),
        ((1, (2,)), [1, [2]]),
        ({"a": [1]}, {"a": [1]}),
    ],
)
def test_plain_arguments_are_kept(tmp_path: Path, value: Any, stored: Any) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Arguments(value), numbers(1))
    assert run.checkpoint.manifest.hyper_parameters["plain"] == stored
    assert run.checkpoint.manifest.not_rebuildable == []
    assert Arguments.load_from_checkpoint(str(run.best_url)).given[0] == stored


@pytest.mark.parametrize(
    "value",
    [
        Thing(),
        nn.Linear(1, 1),
        {1: "a"},
        {"a": {2: 3}},
        math.nan,
        [math.inf],
        torch.zeros(1),
        {1, 2},
        b"x",
        {"api_key": "a1"},
        "s3://me:secret@host/rows",
    ],
)
def test_other_arguments_are_named_and_must_be_given_again(tmp_path: Path, value: Any) -> None:
    """JSON would make a string of an integer key, so that, too, is not kept. Nor are credentials."""
    run = new_trainer(tmp_path, max_epochs=1).fit(Arguments(value, 5), numbers(1))
    manifest = run.checkpoint.manifest
    assert manifest.not_rebuildable == ["plain"]
    assert manifest.hyper_parameters == {"other": 5, "named": 1}
    with pytest.raises(ConfigError, match=r"Arguments cannot be rebuilt from .*: plain could not be kept.* Give it"):
        Arguments.load_from_checkpoint(str(run.best_url))
    assert Arguments.load_from_checkpoint(str(run.best_url), plain=1).given[:2] == (1, 5)
