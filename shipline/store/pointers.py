"""A small file of names that point to committed directories: `best`, `last`; `stable`, `canary`."""

from __future__ import annotations

import json
from typing import Any

from shipline.errors import IntegrityError, NotFoundError
from shipline.store.store import Store

MAX_POINTER_BYTES = 1 << 20


def read_pointers(store: Store, key: str) -> dict[str, dict[str, Any]]:
    """Return the pointers in the file `key`; {} where there is none.

    Raises:
        IntegrityError: the file is no mapping of names to mappings.
    """
    try:
        data = store.read(key)
    except NotFoundError:
        return {}
    try:
        content = json.loads(data) if len(data) <= MAX_POINTER_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise IntegrityError(
            f"{store}/{key} is damaged: a JSON object of names is expected. Publish again, or delete it."
        )
    return content


def write_pointers(store: Store, key: str, changes: dict[str, dict[str, Any]]) -> None:
    """Set some of the pointers, keep the others. Written whole: readers see the old file or the new one."""
    pointers = read_pointers(store, key) | changes
    store.write(key, json.dumps(pointers, indent=1, sort_keys=True).encode())
