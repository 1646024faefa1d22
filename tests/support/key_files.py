"""Files of keys."""

from __future__ import annotations

import hashlib
from pathlib import Path

INFERENCE, ADMIN = "gT8mYw2uQz5xLr0v", "Kd93-fhW.aa8+LmZ7/2q"


def key_file(directory: Path, text: str, mode: int = 0o600) -> str:
    file = directory / "keys"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


def both_keys(directory: Path) -> str:
    """A file with a key for each role, one of them as its digest."""
    digest = hashlib.sha256(ADMIN.encode()).hexdigest()
    return key_file(directory, f"# who: what\ninference {INFERENCE}\n\n  admin\tsha256:{digest}  \n")
