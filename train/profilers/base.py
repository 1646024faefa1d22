"""What every profiler is; and none, of which a run notices nothing: what it would wrap stays as it is."""

from __future__ import annotations

import contextlib
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shipline.store import Store, absolute, open_store
from shipline.train.options.configurable import Configurable

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")


class Profiler(Configurable, ABC):
    """Measures the actions of a run: each hook, each step, each batch that is loaded. Names are PyTorch Lightning's.

    Args:
        dirpath: URL of the directory for its files; default: the run's.
        filename: in the names of its files. Where it is left out, the report is printed, too.
    """

    #: Of the stage that runs: its name, the number of this worker, and where files go, if anywhere.
    stage: str | None = None
    rank = 0
    store: Store | None = None

    def __init__(self, dirpath: str | None = None, filename: str | None = None) -> None:
        self.dirpath = dirpath
        self.filename = filename

    def setup(self, stage: str, run: Store | None, rank: int, module: nn.Module) -> None:
        """Begin a stage: fit, validate, test or predict; what was measured before is forgotten.

        Args:
            stage: its name.
            run: the run's directory, where it has one.
            rank: the number of this worker.
            module: what is trained; its last layers may be missing yet.
        """
        self.stage, self.rank = stage, rank
        self.store = run if self.dirpath is None else open_store(absolute(self.dirpath))

    @abstractmethod
    def start(self, action_name: str) -> None:
        """Say that an action begins."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """Say that an action ends: the one that began last of those that run."""

    @abstractmethod
    def summary(self) -> str:
        """Return what was measured, for people to read."""

    def teardown(self, stage: str) -> None:
        """End a stage, and write what was measured."""
        self.describe()

    def describe(self) -> None:
        """Write the report: into a file where there is a directory for it, and unless that has a name, for people."""
        text = self.summary()
        if text and self.store is not None:
            self.store.write(self.file_name(".txt"), text.encode())
        if text and self.filename is None and self.rank == 0:
            print(text, flush=True)  # noqa: T201

    def file_name(self, ending: str, action_name: str | None = None) -> str:
        """Return the name of a file: of the stage, this worker, and an action where it is about one."""
        parts = (self.stage, self.filename or "profile", str(self.rank), action_name)
        return re.sub(r"[^\w.-]+", "_", "-".join(part for part in parts if part)).strip("_") + ending

    def write_file(self, name: str, make: Callable[[Path], Any]) -> None:
        """Let `make` write a file on this machine, and bring it to where files go."""
        if self.store is not None:
            with tempfile.TemporaryDirectory(prefix="shipline-profile-") as scratch:
                path = Path(scratch) / name
                make(path)
                self.store.write(name, path)

    @contextlib.contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Measure the block."""
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def wrap(self, action_name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, measured whenever it is called."""

        def measured(*arguments: Any, **named: Any) -> Any:
            with self.profile(action_name):
                return function(*arguments, **named)

        return measured

    def profile_iterable(self, iterable: Iterable[T], action_name: str) -> Iterator[T]:
        """Yield what the iterable yields; what is measured is how long each takes to come."""
        source = iter(iterable)
        while True:
            with self.profile(action_name):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item


class PassThroughProfiler(Profiler):
    """Measures nothing: what a run has that is not profiled."""

    def setup(self, stage: str, run: Store | None, rank: int, module: nn.Module) -> None:
        """Do nothing."""

    def start(self, action_name: str) -> None:
        """Do nothing."""

    def stop(self, action_name: str) -> None:
        """Do nothing."""

    def summary(self) -> str:
        """Return nothing."""
        return ""

    def wrap(self, action_name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function itself."""
        return function

    def profile_iterable(self, iterable: Iterable[T], action_name: str) -> Iterator[T]:
        """Return an iterator over it, and nothing around that."""
        return iter(iterable)
