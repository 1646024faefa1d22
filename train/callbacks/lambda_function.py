"""A callback made of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shipline.errors import ConfigError, nearest
from shipline.train.callbacks.callback import Callback

#: The hooks of a callback, in the order in which it has them.
HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown"))


class LambdaCallback(Callback):
    """Calls functions at hooks: `LambdaCallback(on_train_start=lambda trainer, module: ...)`.

    Args:
        hooks: a function for each hook, by the hook's name; it gets what the hook gets: trainer, module, and the rest.

    Raises:
        ConfigError: there is no such hook; the message names the nearest one.
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if name not in HOOKS:
                raise ConfigError(
                    f"LambdaCallback has no option {name!r}.{nearest(name, HOOKS)} Known: {', '.join(HOOKS)}."
                )
            if function is None:
                continue
            if not callable(function):
                raise ConfigError(f"LambdaCallback has {name}={function!r}; set a function.")
            setattr(self, name, function)
