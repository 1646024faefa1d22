"""Candidates made and judged by others, such as the workers of a cluster, ahead of when they are asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple

from shipline.errors import ConfigError, GateError, SignatureError


class Workers:
    """Asks an executor for work whose result will be wanted, under a name.

    What it does not bring is done here instead: a worker that is lost costs time and no candidate.

    Args:
        executor: what makes calls in other processes; none: everything is done here.
    """

    def __init__(self, executor: Executor | None) -> None:
        self._executor = executor
        self._futures: list[tuple[Any, Future[Any]]] = []

    @property
    def there(self) -> bool:
        """Whether there are any."""
        return self._executor is not None

    def ask(self, name: Any, work: Callable[..., Any], *arguments: Any) -> None:
        """Have a call made, unless it was asked for already."""
        if self._executor is not None and all(known != name for known, _ in self._futures):
            self._futures.append((name, self._executor.submit(work, *arguments)))

    def bring(self, name: Any) -> Any:
        """Return what a call gave, once; None where nobody asked for it, or it was lost.

        Raises:
            GateError, ConfigError, SignatureError: as the call did.
        """
        asked = next((pair for pair in self._futures if pair[0] == name), None)
        if asked is None:
            return None
        self._futures.remove(asked)
        try:
            return asked[1].result()
        except (GateError, ConfigError, SignatureError):
            raise
        except Exception:  # of any executor: a worker is gone, or something cannot travel
            return None

    def give_up(self) -> None:
        """Want no more."""
        for _, future in self._futures:
            future.cancel()


class Content(NamedTuple):
    """A file's bytes, and what was noted down while it was made."""

    data: bytes
    notes: dict[str, Any]


def made_elsewhere(make: Callable[..., dict[str, Any]], *arguments: Any) -> Content:
    """Make a file, as `shipline.export.making` does, in a worker."""
    with tempfile.TemporaryDirectory(prefix="shipline-export-") as scratch:
        notes = make(file := Path(scratch) / "made", *arguments)
        return Content(file.read_bytes(), notes)
