"""URLs as people give them, and keys below them."""

from __future__ import annotations

import re
from pathlib import Path

from shipline.errors import ConfigError

_USER_INFO = re.compile(r"(?<=://)[^/?#\s]+@")  # up to the last @ of the host's part: a password may hold one
_SECRET_QUERY = re.compile(
    r"([?&](?:[^=&\s]*(?:key|secret|token|sig|signature|password|credential)[^=&\s]*)=)[^&\s]+", re.IGNORECASE
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEY_PART = re.compile(r"[A-Za-z0-9._=,+@-]{1,255}")


def redact(text: str, url: str = "") -> str:
    """Return `text` with the credentials in any URL replaced by `***`; those of `url` wherever they stand."""
    for user_info in _USER_INFO.findall(url):
        text = text.replace(user_info, "***@")
    return _SECRET_QUERY.sub(r"\1***", _USER_INFO.sub("***@", text))


def is_name(name: str) -> bool:
    """Whether it is a plain name: letters, digits, `.`, `_`, `-`; at most 128, a letter or digit first."""
    return _NAME.fullmatch(name) is not None


def check_name(kind: str, name: str) -> str:
    """Return `name`, or raise ConfigError unless it is a plain name."""
    if not is_name(name):
        raise ConfigError(
            f"{name!r} is no {kind} name: use letters, digits, '.', '_' and '-', at most 128, a letter or digit first."
        )
    return name


def check_key(key: str) -> str:
    """Return `key`, or raise ConfigError unless it stays below its store: relative, no `..`, no odd characters."""
    parts = key.split("/")
    if any(part in (".", "..") or not _KEY_PART.fullmatch(part) for part in parts):
        raise ConfigError(f"{key!r} is no key: a relative path of plain names is expected.")
    return key


def join(url: str, key: str) -> str:
    """Return the URL of `key` below `url`."""
    return f"{url}{key}" if url.endswith("://") else f"{url.rstrip('/')}/{key}"


def absolute(url: str) -> str:
    """Return a local path as an absolute one: other processes run in directories of their own."""
    return url if "://" in url else str(Path(url).absolute())


def split(url: str) -> tuple[str, str]:
    """Return the URL's parent and its last name: `s3://bucket/models/digits` -> `s3://bucket/models`, `digits`."""
    parent, _, name = url.rstrip("/").rpartition("/")
    if not name or parent.endswith(":/") or url.rstrip("/").endswith(":/"):
        raise ConfigError(
            f"{redact(url)!r} names no directory below another: give one, such as s3://bucket/models/digits."
        )
    return parent or ".", name
