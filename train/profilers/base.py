"""What every profiler is. A run without one asks nothing at all: what it would wrap stays as it is."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from shipline.store import Store

T = TypeVar("T")


class Profiler(ABC):
    """Measures the actions of a run: each hook, each step, each batch that is loaded. Names are PyTorch Lightning's."""

    def setup(self, stage: str, run: Store | None, rank: int) -> None:  # noqa: B027 -- there may be nothing to do
        """Begin a stage: fit, validate, test or predict; files go below `run`, where there is one."""

    @abstractmethod
    def start(self, action_name: str) -> None:
        """Say that an action begins."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """Say that an action ends."""

    @abstractmethod
    def summary(self) -> str:
        """Return what was measured, for people to read."""

    def teardown(self, stage: str) -> None:  # noqa: B027
        """End a stage, and write what was measured."""

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
