"""What a Trainer's settings name among the plug-ins, checked when it is made."""

from __future__ import annotations

from typing import Any

from shipline.errors import ConfigError, nearest, unknown_name
from shipline.plugins import known, load
from shipline.train.environments import ClusterEnvironment
from shipline.train.precision import Precision
from shipline.train.profilers import PassThroughProfiler, Profiler
from shipline.train.strategies import Strategy

_PRECISIONS = {
    "64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true", "fp8": "fp8",
}  # fmt: skip


def precision_name(precision: int | str | None) -> str:
    """Return the full name of a precision; ConfigError where there is none."""
    name = _PRECISIONS.get(str(precision), str(precision))
    if name.startswith("transformer-engine"):
        raise ConfigError(f"Trainer has precision={precision!r}; 8-bit floating point is precision='fp8' here.")
    names = known("precision")
    if name not in names:
        raise ConfigError(
            f"Trainer has precision={precision!r}.{nearest(name, names)} Known: {', '.join(sorted(names))}."
        )
    return name


def own_precision(plugins: Any, precision: int | str | None) -> Precision | None:
    """Return the Precision among `plugins`; ConfigError where something else is, or two precisions are set."""
    own = [plugin for plugin in _several(plugins) if not isinstance(plugin, ClusterEnvironment)]
    for plugin in own:
        if not isinstance(plugin, Precision):
            raise ConfigError(
                f"plugins has a {type(plugin).__name__}, which is neither a shipline.train.precision.Precision nor a "
                "shipline.train.environments.ClusterEnvironment."
            )
    if len(own) > 1 or (own and precision is not None):
        raise ConfigError(
            f"Trainer has plugins={own!r} and precision={precision!r}: a run computes in one precision, so set one."
        )
    return own[0] if own else None


def own_environment(plugins: Any) -> ClusterEnvironment | None:
    """Return the ClusterEnvironment among `plugins`; ConfigError where there are two."""
    own = [plugin for plugin in _several(plugins) if isinstance(plugin, ClusterEnvironment)]
    if len(own) > 1:
        raise ConfigError(f"Trainer has plugins={own!r}: a process is started by one environment, so give one.")
    return own[0] if own else None


def _several(plugins: Any) -> list[Any]:
    return list(plugins) if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]


def strategy_setting(given: str | Strategy) -> str | Strategy:
    """Return the Strategy, or the name of one that there is; ConfigError where there is none."""
    if isinstance(given, str):
        if given != "auto" and given not in (names := known("strategy")):
            raise unknown_name("strategy", given, ["auto", *names])
    elif not isinstance(given, Strategy):
        raise ConfigError(f"strategy is a {type(given).__name__}, which is no shipline.train.strategies.Strategy.")
    return given


def profiler_of(given: Profiler | str | None) -> Profiler:
    """Return the Profiler, made where it is named; ConfigError where there is none of that name, or it is none."""
    if given is None:
        return PassThroughProfiler()
    profiler = made("profiler", given)
    if not isinstance(profiler, Profiler):
        raise ConfigError(f"profiler is a {type(profiler).__name__}, which is no shipline.train.profilers.Profiler.")
    return profiler


def made(kind: str, item: Any) -> Any:
    """Return the plug-in that a name stands for, made without arguments; what is no name stays."""
    return load(kind, item)() if isinstance(item, str) else item
