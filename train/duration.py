"""Lengths of time, as people write them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from shipline.errors import ConfigError, nearest

#: "DD:HH:MM:SS", a timedelta, or the arguments of one.
Duration = str | timedelta | dict[str, Any]

_UNITS = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds", "microseconds")
_CLOCK = re.compile(r"(\d+):(\d\d?):(\d\d?):(\d\d?)")
_PRINTED = re.compile(r"(?:(\d+) days?, )?(\d+):(\d\d):(\d\d(?:\.\d+)?)")  # as str(timedelta) has it


def seconds_of(name: str, duration: Duration) -> float:
    """Return a duration in seconds.

    Raises:
        ConfigError: it is none; the message says which option `name` it was given for.
    """
    text = duration.strip() if isinstance(duration, str) else ""
    if found := _CLOCK.fullmatch(text) or _PRINTED.fullmatch(text):
        days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
        duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if isinstance(duration, dict):
        for unit in duration:
            if unit not in _UNITS:
                raise ConfigError(f"{name}={duration!r}: there is no unit {unit!r}.{nearest(str(unit), _UNITS)}")
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
