"""Packages that can be called: `sl.export(...)` and `sl.serve(...)`, while `shipline.export` stays a package."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from shipline.plugins import load_target


class CallableModule(ModuleType):
    """A module that forwards calls to a function, which is imported when it is first called."""

    _call_target: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return load_target(self._call_target)(*args, **kwargs)


def make_callable(module: str, target: str) -> None:
    """Make calls of the imported module `module` go to `"module:attribute"`."""
    imported = sys.modules[module]
    imported.__class__ = CallableModule
    imported.__dict__["_call_target"] = target
