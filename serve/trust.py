"""Whose files may run code in this server: those below URLs that its operator has named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shipline.artifact import Artifact
from shipline.backends.base import Backend
from shipline.errors import ConfigError, ServingError
from shipline.store import redact, split


class Trust:
    """Prefixes of URLs, compared part by part.

    `s3://bucket/models` does not cover `s3://bucket/models-too`, nor a directory what links in it lead to elsewhere.

    Raises:
        ConfigError: a prefix is none.
    """

    def __init__(self, prefixes: Iterable[str] = ()) -> None:
        if isinstance(prefixes, str):
            raise ConfigError(f"trust is {redact(prefixes)!r}; give a list of URLs, such as [{redact(prefixes)!r}].")
        self._prefixes = [_checked(prefix) for prefix in prefixes]

    def covers(self, url: str) -> bool:
        """Return whether the URL is one of the prefixes, or below one."""
        found = _parts(url)
        return found is not None and any(found[: len(prefix)] == prefix for prefix in self._prefixes)

    def check(self, artifact: Artifact, backend: type[Backend]) -> None:
        """Raise ServingError where loading the artifact would run code of its own, and nobody has said that it may."""
        url = artifact.store.url
        if not backend.runs_code or self.covers(url):
            return
        manifest = artifact.manifest
        raise ServingError(
            f"{artifact} holds code: {manifest.model_file} is made for {manifest.backend!r}, and whoever wrote it "
            "decides what this server runs. It is below no URL that is trusted. If you know who may write there, add "
            f"--trust {redact(split(_absolute(url))[0])}"
        )


def _checked(prefix: str) -> tuple[str, ...]:
    parts = _parts(prefix) if prefix else None
    if parts is None or len(parts) < 2:
        raise ConfigError(
            f"trust is {redact(prefix)!r}; give the URL of a directory, without '.' and '..' where it is remote, such "
            "as s3://bucket/models or /srv/models."
        )
    return parts


def _parts(url: str) -> tuple[str, ...] | None:
    """The protocol, the host or bucket, and the names of a URL, without who asks; of a local path, where links lead.

    None for a remote URL with steps to a parent: whether they are taken, each store decides for itself.
    """
    protocol, colon, rest = url.partition("://")
    if not colon or protocol == "file":
        return ("file", *Path(rest if colon else url).resolve().parts)
    host, *names = rest.rstrip("/").split("/")
    host = host.rpartition("@")[2]
    return None if {".", ".."} & {host, *names} or not host else (protocol, host, *names)


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).resolve())
