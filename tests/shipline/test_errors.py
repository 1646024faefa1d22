"""The errors: one tree, drawn as it is, that crosses process borders unchanged."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator

import pytest

from shipline import errors
from shipline.errors import (
    ConfigError,
    ExistsError,
    GateError,
    MissingExtraError,
    NotFoundError,
    ProcessingError,
    ShiplineError,
    SignatureError,
    StoreError,
    UnknownNameError,
    nearest,
    unknown_name,
)


def tree(cls: type[ShiplineError]) -> Iterator[type[ShiplineError]]:
    """The class and all below it that `errors.py` defines, in the order of their definition."""
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below)


ALL = list(tree(ShiplineError))


def test_the_tree_is_drawn_as_it_is() -> None:
    """Names and depths in the docstring are those of the classes."""
    assert errors.__doc__ is not None
    drawn = [
        ((len(indent) - 4) // 4, name)
        for indent, name in re.findall(r"^([ │├└─]{4,})(\w+Error)\b", errors.__doc__, re.MULTILINE)
    ]
    assert drawn == [(cls.__mro__.index(ShiplineError), cls.__name__) for cls in ALL]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_keeps_its_message_across_processes(cls: type[ShiplineError]) -> None:
    copy = pickle.loads(pickle.dumps(cls("lr is 'fast'; give a number.")))  # noqa: S301
    assert type(copy) is cls
    assert str(copy) == "lr is 'fast'; give a number."


@pytest.mark.parametrize(
    ("cls", "also"),
    [
        (ConfigError, ValueError),
        (UnknownNameError, ConfigError),
        (SignatureError, ValueError),
        (ProcessingError, ValueError),
        (MissingExtraError, ImportError),
        (NotFoundError, StoreError),
        (ExistsError, StoreError),
    ],
)
def test_an_error_is_also_what_python_calls_it(cls: type[ShiplineError], also: type[Exception]) -> None:
    assert issubclass(cls, also)


def test_exit_codes_tell_a_wrong_setting_and_a_failed_proof_from_the_rest() -> None:
    codes = {cls: cls.exit_code for cls in ALL}
    assert {cls for cls, code in codes.items() if code == 2} == {ConfigError, UnknownNameError, MissingExtraError}
    assert {cls for cls, code in codes.items() if code == 3} == {GateError}
    assert set(codes.values()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("max_epoch", ["max_steps", "max_epochs"], " Did you mean 'max_epochs'?"),
        ("Resize", ["resize", "rgb"], " Did you mean 'resize'?"),
        ("xyz", ["resize", "rgb"], ""),
        ("", ["resize"], ""),
        ("resize", [], ""),
    ],
)
def test_the_nearest_name_is_suggested_if_it_is_near(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == hint


def test_an_unknown_name_lists_the_known_ones_in_order() -> None:
    error = unknown_name("step", "resiz", ("rgb", "resize"))
    assert type(error) is UnknownNameError
    assert str(error) == "Unknown step 'resiz'. Did you mean 'resize'? Known: resize, rgb."
    assert str(unknown_name("logger", "tb", [])) == "Unknown logger 'tb'. Known: none."
