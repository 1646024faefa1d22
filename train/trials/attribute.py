"""The attribute that a finder tunes: of the module, the DataModule, or among their constructor's arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from shipline.errors import ConfigError, nearest

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer


def tuned_attribute(trainer: Trainer, names: tuple[str, ...], option: str) -> str:
    """Return the first of the names that module or DataModule have.

    Raises:
        ConfigError: they have none; the message names the option by which to say another.
    """
    for name in names:
        if any(True for _ in _places(trainer, name)):
            return name
    own = [key for key in vars(trainer.module) if not key.startswith("_") and key != "training"]
    raise ConfigError(
        f"{' or '.join(map(repr, names))} is to be tuned, and is no attribute of {type(trainer.module).__name__}, of "
        f"the DataModule, nor an argument of theirs.{nearest(names[0], own)} Make it one, or name yours with {option}."
    )


def value_of(trainer: Trainer, name: str) -> Any:
    """Return the attribute's value."""
    for get, _ in _places(trainer, name):
        return get(name)
    raise AssertionError(name)  # tuned_attribute has found it


def set_value(trainer: Trainer, name: str, value: Any) -> None:
    """Set the attribute, wherever it is."""
    for _, put in _places(trainer, name):
        put(name, value)


def _places(trainer: Trainer, name: str) -> Iterator[tuple[Callable[[str], Any], Callable[[str, Any], None]]]:
    for owner in (trainer.module, trainer.data.adopted):
        if hasattr(owner, name):
            yield owner.__getattribute__, owner.__setattr__
        arguments: Any = getattr(owner, "hparams", {})
        if name in arguments:
            yield arguments.__getitem__, arguments.__setitem__
