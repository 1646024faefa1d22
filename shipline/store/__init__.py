"""Storage: any URL that fsspec understands, one commit protocol, one local cache.

`store` moves bytes, `commit` makes directories exist all at once, `pointers` names some of them, `cache` keeps remote
files on this disk.
"""

from shipline.store.cache import Cache
from shipline.store.commit import Committed, Manifest, Publication
from shipline.store.entry import FileEntry
from shipline.store.pointers import read_pointers, write_pointers
from shipline.store.store import Store, open_store
from shipline.store.urls import absolute, check_name, is_name, join, redact, split

__all__ = [
    "Cache",
    "Committed",
    "FileEntry",
    "Manifest",
    "Publication",
    "Store",
    "absolute",
    "check_name",
    "is_name",
    "join",
    "open_store",
    "read_pointers",
    "redact",
    "split",
    "write_pointers",
]
