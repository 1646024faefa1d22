"""What a DataLoader's worker processes draw at random: brought along with each batch, put back when a run resumes."""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Callable
from typing import Any

from torch.utils.data import get_worker_info

from shipline.train.data.generators import Generators

# Workers are forks. What this process has thrown away, they must not end: a runtime would wait for ever for threads
# that a fork does not have (OpenVINO's does), or crash.
os.register_at_fork(after_in_child=gc.freeze)

#: The state of a worker's generators.
State = dict[str, Any]


class Traced:
    """A collate function that adds to each batch the worker's generators' state after it, where it has changed."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate
        self._generators: Generators | None = None
        self._last: State | None = None

    def __call__(self, rows: Any) -> tuple[Any, State | None]:
        """Return the batch and the state."""
        batch = self._collate(rows)
        if self._generators is None:
            self._generators = Generators(_dataset(), self._collate)
        state = self._generators.state_dict()
        changed, self._last = state != self._last, state
        return batch, state if changed else None


class Begin:
    """A worker_init_fn that calls the user's, then puts the worker's generators where they were."""

    def __init__(self, own: Callable[[int], None] | None, collate: Callable[[Any], Any]) -> None:
        self._own, self._collate = own, collate
        self.states: list[State | None] = []

    def __call__(self, worker: int) -> None:
        """Begin in worker process number `worker`."""
        if self._own is not None:
            self._own(worker)
        if self.states and (state := self.states[worker]) is not None:
            Generators(_dataset(), self._collate).load_state_dict(state)


class History:
    """The states of the workers after their last two batches; batch `n` of an epoch is worker `n % workers`'s."""

    def __init__(self, workers: int) -> None:
        self.load([None] * workers)

    def load(self, states: list[State | None]) -> None:
        """Take up what `before` or `last` returned."""
        self._states = [deque([state, state], 2) for state in states]

    def begin(self, persistent: bool) -> None:
        """Say that an epoch begins: its workers are new ones, unless they are persistent."""
        self.load(self.last() if persistent else [None] * len(self._states))

    def add(self, batch: int, state: State | None) -> None:
        """Take the state that came with a batch; None where it is the one before."""
        states = self._states[batch % len(self._states)]
        states.append(states[-1] if state is None else state)

    def last(self) -> list[State | None]:
        """Return each worker's newest state."""
        return [states[-1] for states in self._states]

    def before(self, done: int, given: int) -> list[State | None]:
        """Return each worker's state where the round of batches begins that comes after `done` of those `given`."""
        in_round = given - (done - done % len(self._states))
        return [states[0 if worker < in_round else 1] for worker, states in enumerate(self._states)]


def _dataset() -> Any:
    info = get_worker_info()
    assert info is not None
    return info.dataset
