"""What loggers have in common that write by a library of their own."""

from __future__ import annotations

import importlib.util
import logging
import threading
from abc import ABC, abstractmethod
from typing import Any

from shipline.errors import ConfigError
from shipline.plugins import missing_extra
from shipline.store import Store
from shipline.train.loggers.files import LibraryFiles
from shipline.train.loggers.logger import Logger
from shipline.train.loggers.place import Place

logger = logging.getLogger(__name__)


def require(package: str) -> None:
    """Look for a package without importing it.

    Raises:
        MissingExtraError: it is not installed; the message says which extra brings it.
    """
    try:
        there = importlib.util.find_spec(package) is not None
    except ValueError:  # sys.modules says that there is none
        there = False
    if not there:
        raise missing_extra(ModuleNotFoundError(f"No module named {package!r}", name=package))


class LibraryLogger(Logger, ABC):
    """A logger whose library is opened when something is logged, and again after `finalize` if more comes.

    Args:
        package: of the library.
        place: where files go.
        prefix: what names of metrics are to begin with, before a "-".
    """

    #: Below the run's directory; a `save_dir` is taken as it is.
    subdirectory = ""

    def __init__(self, package: str, place: Place, prefix: str) -> None:
        require(package)
        self._place = place
        self._prefix = prefix
        self._run: Store | None = None
        self._files: LibraryFiles | None = None
        self._library: Any = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None, "_files": None, "_library": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    # ---- what each library does --------------------------------------------------------------------------------------

    @abstractmethod
    def _start(self) -> Any:
        """Return the library's object, ready to write."""

    def _flush(self) -> None:
        """Bring what was logged to the files, or to the server."""

    @abstractmethod
    def _stop(self, status: str) -> None:
        """Close the library's object."""

    # ---- what all do -------------------------------------------------------------------------------------------------

    @property
    def experiment(self) -> Any:
        """The library's object, made when it is first asked for."""
        with self._lock:
            if self._library is None:
                self._library = self._start()
            return self._library

    @property
    def name(self) -> str | None:
        """The name of the experiment: that given, or that of the run."""
        return self._place.name_in(self._run) or None

    @property
    def version(self) -> str | int | None:
        """The version: that given, or that of the run."""
        return self._place.number(self._run)

    @property
    def save_dir(self) -> str | None:
        """URL that was given."""
        return self._place.shown

    @property
    def log_dir(self) -> str | None:
        """URL of the directory that holds the files."""
        store = self._store()
        return None if store is None else str(store)

    def open(self, run: Store | None, resumed_step: int | None) -> None:
        """Take the run's directory as the place for files, unless another was given."""
        self._run = run

    def save(self) -> None:
        """Write what was logged; where the store is remote, bring the files there."""
        with self._lock:
            if self._library is None:
                return
            self._flush()
            files = self._files
        if files is not None:
            files.upload()  # training may log in the meantime

    def finalize(self, status: str) -> None:
        """Close the library's object, and bring its files to the store."""
        with self._lock:
            library, files = self._library, self._files
            try:
                if library is not None:
                    self._stop(status)
            finally:
                self._library = self._files = None
                if files is not None:
                    files.close()

    @property
    def _is_placed(self) -> bool:
        """Whether there is a place for files: without a run's directory, nothing is written."""
        return self._library is not None or self._store() is not None

    def _store(self) -> Store | None:
        store = self._place.store(self._run)
        if store is None or not self.subdirectory or self._place.save_dir is not None:
            return store
        return store.at(self.subdirectory)

    def _open_files(self, *, fetch: bool = False) -> LibraryFiles:
        store = self._store()
        if store is None:
            raise ConfigError(
                f"{type(self).__name__} has no directory yet: use it while a Trainer runs, or give it a save_dir."
            )
        self._files = LibraryFiles(store, fetch=fetch)
        return self._files
