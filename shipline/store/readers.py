"""Who reads a committed directory: what keeps others from deleting it meanwhile.

A reader writes a small file, `<directory>/reader-<nonce>`, that says until when it counts, and only then believes the
manifest, if it is still the one that it opened. It writes the file anew as long as it reads, and removes it at the end;
one that died is forgotten when the time is up. Who deletes looks for readers, takes the manifest away, and looks again:
who came between has read the manifest perhaps, and gets it back. So a reader keeps every file, or hears that what it
opened is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator

from shipline.errors import NotFoundError, ShiplineError, StoreError
from shipline.store.store import Store

logger = logging.getLogger(__name__)

PREFIX = "reader-"
#: Seconds for which a reader counts, and after which it says again that it is there. Clocks may differ by less.
COUNTS_S = 300.0
AGAIN_S = 60.0


@contextlib.contextmanager
def reading(directory: Store, check: Callable[[], None]) -> Iterator[None]:
    """Keep the directory from being deleted, where the store lets this process write.

    Args:
        directory: that is committed.
        check: raises if what the reader has opened does not stand there any more; called once the reader counts.
    """
    key = f"{PREFIX}{secrets.token_hex(6)}"
    if not _count(directory, key):
        yield
        return
    ended = threading.Event()
    again = threading.Thread(target=_go_on, args=(directory, key, ended), name="shipline-reader", daemon=True)
    try:
        check()
        again.start()
        yield
    finally:
        ended.set()
        if again.is_alive():
            again.join()
        with contextlib.suppress(ShiplineError):  # it is forgotten when its time is up
            directory.remove(key)


def is_read(directory: Store) -> bool:
    """Whether somebody reads the directory."""
    return any(_counts(directory, name) for name in directory.list() if name.startswith(PREFIX))


def _count(directory: Store, key: str) -> bool:
    try:
        directory.write(key, json.dumps({"until": time.time() + COUNTS_S}).encode())
    except StoreError as error:  # one may read here, and not write
        logger.debug("%s Nothing keeps it from being deleted while it is read.", error)
        return False
    return True


def _go_on(directory: Store, key: str, ended: threading.Event) -> None:
    while not ended.wait(AGAIN_S):
        _count(directory, key)


def _counts(directory: Store, name: str) -> bool:
    try:
        until = json.loads(directory.read(name))["until"]
    except (NotFoundError, ValueError, TypeError, KeyError):  # it has just ended; or it is no file of a reader
        return False
    return isinstance(until, int | float) and until > time.time()
