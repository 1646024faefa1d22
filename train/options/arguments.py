"""The arguments that an object was made with, kept so that it can be made again."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Self

from shipline.errors import nearest


class Arguments(dict[str, Any]):
    """Arguments by name, which can also be read and set as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"There is no argument {name!r}.{nearest(name, self)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"There is no argument {name!r}.{nearest(name, self)}")
        del self[name]


class KeepsArguments:
    """Keeps the constructor's arguments as they are given."""

    _arguments: Arguments

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the constructor's arguments; wrong ones are the constructor's own error."""
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except TypeError:
            arguments = Arguments()
        else:
            bound.apply_defaults()
            arguments = _flat(bound)
        self.__dict__["_arguments"] = arguments
        return self

    @property
    def hparams(self) -> Arguments:
        """The constructor's arguments by name: `hparams["lr"]` or `hparams.lr`."""
        return self._arguments

    @property
    def hparams_initial(self) -> Arguments:
        """A copy of them."""
        return copy.deepcopy(self._arguments)

    def save_hyperparameters(
        self, *args: Any, ignore: str | Iterable[str] | None = None, frame: Any = None, logger: bool = True
    ) -> None:
        """Keep only these constructor arguments, or all but those ignored. Without a call all are kept.

        Args:
            args: names; or one object that holds arguments: a dict, or what has them as attributes.
            ignore: a name, or names.
            frame: taken for Lightning's sake; the arguments are known already.
            logger: taken for Lightning's sake; the Trainer's `enable_autolog_hparams` decides.
        """
        if len(args) == 1 and not isinstance(args[0], str):
            self._arguments.update(args[0] if isinstance(args[0], Mapping) else vars(args[0]))
            args = ()
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        for name in list(self._arguments):
            if name in ignored or (args and name not in args):
                del self._arguments[name]


def _flat(bound: inspect.BoundArguments) -> Arguments:
    """The arguments by name, without self, with **kwargs spread out."""
    arguments = Arguments()
    for position, (name, value) in enumerate(bound.arguments.items()):
        kind = bound.signature.parameters[name].kind
        if position == 0 or kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        else:
            arguments[name] = value
    return arguments
