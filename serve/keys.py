"""API keys: read from a file, compared in constant time.

One key a line, behind its role; blank lines and those that begin with # are skipped:

    inference KEY
    admin sha256:DIGEST-OF-A-KEY

An admin key is good for everything, an inference key for all that changes nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from enum import IntEnum
from pathlib import Path

from shipline.errors import ConfigError, unknown_name

MIN_LENGTH = 16
_MIN_DIFFERENT = 8
_HASHED = "sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PRINTABLE = re.compile(r"[!-~]+")
_PLACEHOLDER = re.compile(
    r"change[-_ ]?me|password|passwort|example|default|placeholder|your[-_]|secret|qwerty|123456789"
)
_KNOWN_WEAK = ("", "changeme", "change-me", "password", "secret", "admin", "default", "test", "example")


class Role(IntEnum):
    """What somebody may do; each includes those before it."""

    ANYONE = 0
    INFERENCE = 1
    ADMIN = 2


ROLES = {"inference": Role.INFERENCE, "admin": Role.ADMIN}


class Keys:
    """The keys of a file.

    Raises:
        ConfigError: the file cannot be read, holds no key, one that is easily guessed, or a role that there is not; or
            everybody on this machine can read the keys in it.
    """

    def __init__(self, file: str) -> None:
        self._roles: dict[bytes, Role] = {}
        plain = False
        for number, line in enumerate(_lines(file), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            where = f"api_keys: line {number} of {file}"
            if len(words) != 2:
                raise ConfigError(f"{where} is not a role and a key, such as: inference KEY")
            if words[0] not in ROLES:
                raise ConfigError(f"{where}: {unknown_name('role', words[0], ROLES)}")
            plain = plain or not words[1].startswith(_HASHED)
            self._add(ROLES[words[0]], _digest(words[1], where), where)
        if not self._roles:
            raise ConfigError(f"api_keys: {file} holds no key. Write lines of a role (inference, admin) and a key.")
        if plain:
            _check_private(file)

    def role(self, key: bytes) -> Role:
        """Return what this key is good for; the time that it takes says nothing about the keys."""
        digest = hashlib.sha256(key).digest()
        found = Role.ANYONE
        for known, role in self._roles.items():  # all of them, also after the right one
            if hmac.compare_digest(digest, known):
                found = role
        return found

    def _add(self, role: Role, digest: bytes, where: str) -> None:
        if digest in self._roles:
            raise ConfigError(f"{where} has a key that stands there already; one key has one role.")
        self._roles[digest] = role


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"api_keys is {file}, which cannot be read: {reason}.") from error


def _digest(written: str, where: str) -> bytes:
    """The sha256 of a key that is hard enough to guess."""
    if written.startswith(_HASHED):
        text = written.removeprefix(_HASHED).lower()
        if not _DIGEST.fullmatch(text):
            raise ConfigError(f"{where} has a sha256 that is not 64 hexadecimal digits.")
        digest = bytes.fromhex(text)
        if digest in (hashlib.sha256(weak.encode()).digest() for weak in _KNOWN_WEAK):
            raise ConfigError(f"{where} has the sha256 of a key that everybody tries first. {_ADVICE}")
        return digest
    if not _PRINTABLE.fullmatch(written):
        raise ConfigError(f"{where} has a key with characters that no header can carry. {_ADVICE}")
    if len(written) < MIN_LENGTH or len(set(written)) < _MIN_DIFFERENT or _PLACEHOLDER.search(written.lower()):
        raise ConfigError(
            f"{where} has a key that is easily guessed: under {MIN_LENGTH} characters, or of few different ones, "
            f"or a placeholder. {_ADVICE}"
        )
    return hashlib.sha256(written.encode()).digest()


_ADVICE = "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"


def _check_private(file: str) -> None:
    if Path(file).stat().st_mode & stat.S_IROTH:
        raise ConfigError(
            f"api_keys: everybody on this machine can read the keys in {file}. Run: chmod o-r {file}, or write their "
            "sha256 instead of them."
        )
