"""Lengths of time, as people write them."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any

from shipline.errors import ConfigError, nearest

#: "DD:HH:MM:SS", a timedelta, or the arguments of one.
Duration = str | dict[str, Any] | timedelta  # in this order: what comes after timedelta, jsonargparse writes as one

_UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
_CLOCK = re.compile(r"(\d+):(\d\d?):(\d\d?):(\d\d?)")


def seconds_of(name: str, duration: Duration) -> float:
    """Return a duration in seconds.

    Raises:
        ConfigError: it is none; the message says which option `name` it was given for.
    """
    if isinstance(duration, str) and (found := _CLOCK.fullmatch(duration.strip())):
        days, hours, minutes, seconds = map(int, found.groups())
        duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if isinstance(duration, dict):
        for unit in duration:
            if unit not in _UNITS:
                hint = nearest(str(unit), _UNITS)
                raise ConfigError(f"{name}={duration!r} is no length of time: there is no unit {unit!r}.{hint}")
        try:
            duration = timedelta(**duration)
        except TypeError as error:
            raise ConfigError(f"{name}={duration!r} is no length of time: {error}.") from error
    if not isinstance(duration, timedelta) or duration < timedelta(0):
        raise ConfigError(
            f"{name}={duration!r} is no length of time: give DD:HH:MM:SS such as '00:12:00:00', a datetime.timedelta, "
            "or a dict such as {'hours': 12}."
        )
    return duration.total_seconds()


def positive_seconds(name: str, duration: float | Duration) -> float:
    """Return a number of seconds, or a duration, in seconds; ConfigError where that is none, or nothing."""
    plain = isinstance(duration, int | float) and not isinstance(duration, bool)
    seconds = float(duration) if plain else seconds_of(name, duration)  # type: ignore[arg-type]
    if not 0 < seconds < math.inf:
        raise ConfigError(f"Trainer has {name}={duration!r}; set seconds above 0, or a length of time.")
    return seconds
