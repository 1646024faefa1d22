"""Classes whose misspelled options are met with the nearest known one, and that can say what they were made with."""

from __future__ import annotations

import inspect
from typing import Any, Self

from shipline.errors import ConfigError, nearest


class Configurable:
    """Refuses an option that the constructor does not have, before it is called; and keeps those that it was given."""

    #: The arguments that the constructor was given, by name.
    given: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Look at the names of the options, and keep them.

        Raises:
            ConfigError: one is not known; the message names the nearest known one.
        """
        parameters = inspect.signature(cls.__init__).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in () if takes_any else options:
            if name not in parameters:
                known = [known for known in parameters if known != "self"]
                raise ConfigError(
                    f"{cls.__name__} has no option {name!r}.{nearest(name, known)} Known: {', '.join(known)}."
                )
        self = super().__new__(cls)
        names = (p.name for p in [*parameters.values()][1:] if p.kind is p.POSITIONAL_OR_KEYWORD)
        self.__dict__["given"] = dict(zip(names, args, strict=False)) | options
        return self
