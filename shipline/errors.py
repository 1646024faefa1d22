"""Every error that Shipline raises, as one tree.

    ShiplineError
    ├── ConfigError            a setting that the user wrote is wrong (also a ValueError)
    │   └── UnknownNameError   ... a name that nobody knows; says the nearest known one
    ├── MissingExtraError      an optional dependency is not installed (also an ImportError)
    ├── StoreError             storage cannot be reached, is full, or refuses us
    │   ├── AccessDeniedError  ... refuses us: credentials or rights, so that to try again would not help
    │   ├── NotFoundError      nothing there, or nothing committed
    │   └── ExistsError        somebody else committed it first
    ├── IntegrityError         bytes differ from what their manifest promises
    ├── SchemaError            written by a newer Shipline than this one
    ├── SignatureError         tensors or a module do not match the declared signature (also a ValueError)
    ├── InputError             a runtime cannot compute with the values of a tensor (also a ValueError)
    ├── ProcessingError        a raw input cannot be turned into tensors (also a ValueError)
    ├── TrainingError          a run cannot go on
    │   └── HungError          ... a step took longer than it may
    ├── GateError              an export failed its proof; nothing was published
    └── ServingError           the server cannot start, or the server answered with an error

Every message says what was set, what was found and what to do. The errors carry nothing but their message, so that
they cross process borders unchanged.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ShiplineError(Exception):
    """Base of every error raised by Shipline; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(ShiplineError, ValueError):
    """A setting is wrong."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A name that is not known."""


class MissingExtraError(ShiplineError, ImportError):
    """An optional dependency is not installed."""

    exit_code = 2


class StoreError(ShiplineError):
    """Storage cannot be reached, is full, or refuses us."""


class AccessDeniedError(StoreError):
    """Storage does not let us: to try again would not help."""


class NotFoundError(StoreError):
    """Nothing is there, or nothing was committed there."""


class ExistsError(StoreError):
    """It was committed already; what is committed never changes."""


class IntegrityError(ShiplineError):
    """Bytes differ from what their manifest promises."""


class SchemaError(ShiplineError):
    """The file was written by a newer version of Shipline."""


class SignatureError(ShiplineError, ValueError):
    """Tensors, or a module, do not match the declared signature."""


class InputError(ShiplineError, ValueError):
    """A runtime cannot compute with the values of a tensor."""


class ProcessingError(ShiplineError, ValueError):
    """A raw input cannot be turned into tensors."""


class TrainingError(ShiplineError):
    """A run cannot go on."""


class HungError(TrainingError):
    """A step took longer than it may; says who is missing."""


class GateError(ShiplineError):
    """An export failed its proof; nothing was published."""

    exit_code = 3


class ServingError(ShiplineError):
    """The server cannot start, or a server answered with an error."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name closest to `name`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a `name` that no `kind` has, with the nearest and all known names."""
    names = sorted(known)
    listed = ", ".join(names) if names else "none"
    return UnknownNameError(f"Unknown {kind} {name!r}.{nearest(name, names)} Known: {listed}.")
