"""Steps that `torch.compile` has compiled.

What is compiled is the step as the loop calls it: what the strategy put around it, the module's training, validation,
test or prediction step, and all that it calls. Nothing of the module is changed, so that its state dict, its copies and
what is exported are those of the module itself. What Shipline does inside a step, such as to log, or to step an
optimizer by hand, is not compiled: the graph ends before it and goes on after it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shipline.errors import ConfigError, nearest

Step = Callable[..., Any]
#: Returns a step compiled.
Compiler = Callable[[Step], Step]

_OPTIONS = ("fullgraph", "dynamic", "backend", "mode", "options", "disable")


def check_compile(value: Any) -> bool | dict[str, Any]:
    """Return what the Trainer's `compile` is set to.

    Raises:
        ConfigError: it is neither a bool nor options of `torch.compile`.
    """
    if isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        raise ConfigError(f"Trainer has compile={value!r}; set True, or a dict of options: {', '.join(_OPTIONS)}.")
    for name in value:
        if name not in _OPTIONS:
            raise ConfigError(
                f"Trainer has compile={value!r}, and torch.compile has no option {name!r}.{nearest(name, _OPTIONS)} "
                f"Known: {', '.join(_OPTIONS)}."
            )
    return value


def compiler_of(setting: bool | dict[str, Any], compiled_as: Compiler | None) -> Compiler:
    """Return what compiles steps.

    Args:
        setting: the Trainer's `compile`.
        compiled_as: what `torch.compile` compiled the model with that was given, if it was; `setting` goes before it.
    """
    if setting is False and compiled_as is None:
        return as_it_is
    _leave_out_ourselves()
    if setting is False:
        assert compiled_as is not None
        return compiled_as
    options = setting if isinstance(setting, dict) else {}
    return lambda step: torch.compile(step, **options)


def compiled_as(model: Any) -> Compiler | None:
    """Return what compiles as `torch.compile` did where it returned this model; None where it did not."""
    return getattr(model, "dynamo_ctx", None) if hasattr(model, "_orig_mod") else None


def as_it_is(step: Step) -> Step:
    """Return the step, not compiled."""
    return step


def uncompiled(function: Step) -> Step:
    """Return what runs the function, and all that it calls, uncompiled, also when a compiled step calls it."""
    return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]


def _leave_out_ourselves() -> None:
    """Let torch compile no file of this package: what is logged changes with each step, and so would the graphs."""
    from torch._dynamo import trace_rules

    if f"{Path(__file__).parent.as_posix()}/" not in trace_rules.SKIP_DIRS:
        trace_rules.add("shipline.train")
