"""One checkpoint that all workers write, each its parts, in the background; the first one commits it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shipline.errors import ShiplineError, TrainingError
from shipline.store import FileEntry, Publication, Store
from shipline.store.commit import fresh_nonce
from shipline.store.store import Data
from shipline.train.checkpoints.writer import Writer
from shipline.train.strategies import Strategy

logger = logging.getLogger(__name__)


@dataclass
class Together:
    """What each worker does of it.

    Args:
        strategy: in whose background workers meet.
        writer: of this worker.
        directory: for this checkpoint alone.
        first: called before, on the first worker.
        commit: commits the publication, on the first worker.
        then: called afterwards there.
    """

    strategy: Strategy
    writer: Writer
    directory: Store
    first: Sequence[Callable[[], None]]
    commit: Callable[[Publication], None]
    then: Callable[[], None] | None

    def submit(self, files: dict[str, Data]) -> None:
        """Write this worker's files; all workers call it at the same point."""
        publication = Publication(self.directory, self.strategy.broadcast(fresh_nonce()))
        meet = self.strategy.background()
        self.writer.run(lambda: self._write(publication, files, meet))

    def _write(self, publication: Publication, files: dict[str, Data], meet: Callable[[Any], list[Any]]) -> None:
        own, failure = self._add(publication, files)
        everybody = meet((own, failure))
        outcome = next((theirs for _, theirs in everybody if theirs is not None), None)
        if self.strategy.rank == 0:
            if outcome is None:
                for theirs, _ in everybody:
                    publication.include(theirs)
                outcome = self._tried(lambda: self._finish(publication))
            left = self._tried(lambda: publication.__exit__(None, None, None))  # removes what was not committed
            outcome = outcome or left
        outcome = meet(outcome)[0]
        if outcome is not None:
            raise TrainingError(outcome)
        self.writer.last_good = str(self.directory)

    def _add(self, publication: Publication, files: dict[str, Data]) -> tuple[dict[str, FileEntry], str | None]:
        own: dict[str, FileEntry] = {}

        def add() -> None:
            for name, data in files.items():
                if name not in own:  # tried again, it goes on where it failed
                    own[name] = publication.add(name, data)

        return own, self._tried(add)

    def _finish(self, publication: Publication) -> None:
        for step in (*self.first, lambda: self.commit(publication), *([self.then] if self.then else [])):
            step()

    def _tried(self, job: Callable[[], None]) -> str | None:
        """Do it, however often the store refuses at first; return what went wrong in the end, whatever that is.

        The others wait: they must be told, and all fail alike. An error that got past here would end this thread alone.
        """
        try:
            self.writer.retry(str(self.directory), job)
        except ShiplineError as error:
            return str(error)
        except Exception as error:
            rank = self.strategy.rank
            logger.exception("Worker %d could not write its part of %s.", rank, self.directory)
            return f"Worker {rank} could not write its part of {self.directory}: {type(error).__name__}: {error}"
        return None
