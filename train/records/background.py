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
        # Not the thread's own end: a signal's error within `join` makes Python 3.11 take a thread that runs for ended.
        self._done = threading.Event()
        if function is None:
            self._done.set()
        else:
            threading.Thread(target=self._call, args=(function,), name="shipline-records", daemon=True).start()

    @classmethod
    def known(cls, result: T) -> Self:
        """Return one that has nothing to wait for."""
        return cls(None, result)

    def result(self) -> T:
        """Wait, and return what the function returned, or raise what it raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result

    def __getstate__(self) -> dict[str, Any]:
        return {"_result": self.result()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(None, state["_result"])  # type: ignore[misc]

    def _call(self, function: Callable[[], T]) -> None:
        try:
            self._result = function()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()
