"""The settings of a run that was started from Python, as a configuration that `shipline train` takes."""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

from shipline.lineage import without_secrets
from shipline.train.options.arguments import Arguments, KeepsArguments, constructor_arguments
from shipline.train.options.configurable import Configurable
from shipline.train.seed import current_seed

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer


class NotPlainError(Exception):
    """A value cannot be said in YAML; says which."""


@dataclass(frozen=True)
class Description:
    """What a run was started with.

    Args:
        content: what a configuration file would hold.
        missing: what is not in it, and why, one line each.
    """

    content: dict[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def to_yaml(self) -> bytes:
        """Return the file, without credentials; comments name what is missing."""
        import yaml  # its import takes time, and the first step needs none

        comments = "".join(f"# not kept: {line}\n" for line in self.missing)
        return (comments + yaml.safe_dump(without_secrets(self.content), sort_keys=False, allow_unicode=True)).encode()


def described(trainer: Trainer, parts: dict[str, Any]) -> Description:
    """Return the Trainer's options that are no defaults, and its module and data where their arguments are plain."""
    content: dict[str, Any] = {"seed_everything": current_seed()}
    missing: list[str] = []
    for name, value in parts.items():
        try:
            content[name] = _made_again(value)
        except NotPlainError as error:
            missing.append(f"{name}: {error}")
    content["trainer"] = _options(trainer, missing)
    roots = [root for value in parts.values() if (root := _root(type(value))) is not None]
    return Description(content | {"import_path": list(dict.fromkeys(roots))}, tuple(missing))


def _options(trainer: Trainer, missing: list[str]) -> dict[str, Any]:
    """The options that are no defaults; of several callbacks or loggers, those that are plain."""
    defaults = {p.name: p.default for p in _parameters(type(trainer))}
    options: dict[str, Any] = {}
    for name, value in trainer.given.items():
        kept = []
        for item in value if isinstance(value, list | tuple) else [value]:
            try:
                kept.append(_plain(item))
            except NotPlainError as error:
                missing.append(f"trainer.{name}: {error}")
        if kept and kept[0] != defaults[name]:
            options[name] = kept if isinstance(value, list | tuple) else kept[0]
    return options


def _plain(value: Any) -> Any:
    """A value as YAML data.

    Raises:
        NotPlainError: it is none.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # YAML takes no subclass, such as a member of an Enum or a number of numpy's
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, timedelta):
        return {"seconds": value.total_seconds()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return _path(value)
    return _made_again(value)


def _made_again(value: Any) -> dict[str, Any]:
    """The class of an object and its arguments, by which it can be made again."""
    path, plain = _path(type(value)), {}
    for name, argument in _arguments(value).items():
        try:
            plain[name] = _plain(argument)
        except NotPlainError:
            raise NotPlainError(f"a {path}, whose argument {name} is no plain data") from None
    return {"class_path": path, "init_args": plain} if plain else {"class_path": path}


def _path(of: Any) -> str:
    """Where a class or function can be imported from."""
    path = f"{of.__module__}.{of.__qualname__}"
    if of.__module__ == "__main__" or getattr(sys.modules.get(of.__module__), of.__qualname__, None) is not of:
        raise NotPlainError(f"a {path}, which cannot be imported elsewhere")
    return path


def _arguments(value: Any) -> dict[str, Any]:
    """The arguments that an object was made with: those that it was given, or all of them."""
    if isinstance(value, Configurable):
        return value.given
    if isinstance(value, KeepsArguments):
        known = Arguments(constructor_arguments(value))
    elif _of_python(value):
        known = Arguments()
    else:
        raise NotPlainError(f"a {_path(type(value))}, which does not keep its arguments")
    for parameter in _parameters(type(value)):
        if parameter.name not in known and not (known and parameter.kind is parameter.VAR_KEYWORD):
            raise NotPlainError(f"a {_path(type(value))}, which does not keep its argument {parameter.name}")
    return dict(known)


def _of_python(value: Any) -> bool:
    """Whether only `__init__` can have been given arguments; a tensor made anew of its class would lack its numbers."""
    return type(value).__new__ is object.__new__ and hasattr(value, "__dict__")  # type: ignore[comparison-overlap]


def _parameters(cls: type) -> list[inspect.Parameter]:
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return []
    return [*inspect.signature(cls.__init__).parameters.values()][1:]  # type: ignore[misc]


def _root(cls: type) -> str | None:
    """The directory from which the class's module is imported, where it is not an installed package."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if (
        file is None
        or cls.__module__ == "__main__"
        or "site-packages" in file
        or cls.__module__.startswith("shipline.")
    ):
        return None
    path = Path(file).absolute()
    depth = cls.__module__.count(".") + (path.name == "__init__.py")
    return str(path.parents[depth])
