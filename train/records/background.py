"""Something that is found out while the run goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Background(Generic[T]):
    """Calls a function in a thread; whoever needs what it returns waits for it.

    Args:
        function: what to call; None where the result is there already.
        result: that result.
    """

    def __init__(self, function: Callable[[], T] | None = None, result: Any = None) -> None:
        self._result: T = result
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        if function is not None:
            self._thread = threading.Thread(target=self._call, args=(function,), name="shipline-records", daemon=True)
            self._thread.start()

    @classmethod
    def known(cls, result: T) -> Self:
        """Return one that has nothing to wait for."""
        return cls(None, result)

    def result(self) -> T:
        """Wait, and return what the function returned, or raise what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error
        return self._result

    def __getstate__(self) -> dict[str, Any]:
        return {"_result": self.result(), "_error": None, "_thread": None}

    def _call(self, function: Callable[[], T]) -> None:
        try:
            self._result = function()
        except BaseException as error:
            self._error = error
