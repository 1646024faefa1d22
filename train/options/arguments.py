"""The arguments that an object was made with, kept so that it can be made again."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from types import FrameType
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
        self.__dict__["_arguments"], self.__dict__["_given"] = arguments, frozenset(arguments)
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

        Those of a base class whose constructor calls this are kept, too; a further call keeps more.

        Args:
            args: names; or one object that holds arguments: a dict, or what has them as attributes.
            ignore: a name, or names.
            frame: where the constructor's variables are; default: the caller's.
            logger: taken for Lightning's sake; the Trainer's `enable_autolog_hparams` decides.
        """
        kept = self._arguments
        found = {**_of_constructors(self, frame or inspect.currentframe()), **kept}
        if not self.__dict__.get("_chosen"):
            kept.clear()
            self.__dict__["_chosen"] = True
        if len(args) == 1 and not isinstance(args[0], str):
            found.update(args[0] if isinstance(args[0], Mapping) else vars(args[0]))
            args = ()
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        kept.update({name: value for name, value in found.items() if not args or name in args})
        for name in ignored & set(kept):
            del kept[name]


def constructor_arguments(owner: Any) -> dict[str, Any]:
    """What of an object's `hparams` its constructor was given; of one of Lightning's, which does not say so, all."""
    given = owner.__dict__.get("_given")
    return {name: value for name, value in owner.hparams.items() if given is None or name in given}


def _of_constructors(owner: Any, frame: FrameType | None) -> dict[str, Any]:
    """The arguments of the constructors that run and call each other; where names are equal, of the outermost."""
    found: dict[str, Any] = {}
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__init__" and code.co_varnames and frame.f_locals.get(code.co_varnames[0]) is owner:
            _, _, spread, values = inspect.getargvalues(frame)
            count = code.co_argcount + code.co_kwonlyargcount
            found.update({name: values[name] for name in code.co_varnames[1:count] if name in values})
            found.update(values.get(spread, {}) if spread else {})
        frame = frame.f_back
    return found


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
