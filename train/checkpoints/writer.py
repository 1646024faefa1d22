"""A thread that writes checkpoints while training goes on, and tries again while the store is full or away."""

from __future__ import annotations

import concurrent.futures
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from shipline.errors import AccessDeniedError, StoreError, TrainingError

logger = logging.getLogger(__name__)

#: Seconds for which a checkpoint is tried again, and the longest wait between two tries.
RETRY_FOR_S = 300.0
LONGEST_WAIT_S = 30.0


class Writer:
    """Does one job after the other, each in the background.

    Args:
        retry_for: seconds for which a job that the store refuses is tried again.
    """

    def __init__(self, retry_for: float = RETRY_FOR_S) -> None:
        self._retry_for = retry_for
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[None] | None = None
        self._stopping = threading.Event()
        self._refused = False  # whether the job has been refused, and is tried again
        self.last_good: str | None = None

    def submit(self, where: str, job: Callable[[], None]) -> None:
        """Do `job`, which commits the checkpoint at `where`, after the one before.

        Raises:
            TrainingError: the one before failed, however often it was tried.
        """
        self.run(lambda: self.retry(where, job))

    def run(self, job: Callable[[], None]) -> None:
        """Do `job` once, after the one before: it tries again itself what can be tried again.

        Raises:
            TrainingError: the one before failed.
        """
        self.wait()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shipline-checkpoint")
        self._refused = False
        self._job = self._pool.submit(job)

    def check(self) -> None:
        """Raise what a finished job raised; wait for nothing."""
        if self._job is not None and self._job.done():
            self.wait()

    def is_refused(self) -> bool:
        """Return whether the store has refused the job, which is tried again; wait while nobody knows.

        Raises:
            TrainingError: it failed.
        """
        while self._job is not None and not self._job.done():
            if self._refused:
                return True
            concurrent.futures.wait([self._job], timeout=0.05)
        self.check()
        return False

    def wait(self) -> None:
        """Wait for the job.

        Raises:
            TrainingError: it failed.
        """
        if self._job is not None:
            job, self._job = self._job, None
            job.result()

    def close(self) -> None:
        """Finish the job, and end the thread; a job that keeps failing is not tried again."""
        self._stopping.set()
        try:
            self.wait()
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            self._stopping.clear()

    def retry(self, where: str, job: Callable[[], None]) -> None:
        """Do `job` in this thread, and again for as long as the store refuses.

        Raises:
            TrainingError: it refused to the end.
        """
        began, wait, self._refused = time.monotonic(), 1.0, False
        while True:
            try:
                job()
                self.last_good = where
                return
            except StoreError as error:
                left = self._retry_for - (time.monotonic() - began)
                if isinstance(error, AccessDeniedError) or left <= 0 or self._stopping.is_set():
                    raise self._given_up(where, error, time.monotonic() - began) from error
                # Many runs that lost one store must not come back at the same moment.
                pause = min(wait, left) * random.uniform(0.5, 1.0)  # noqa: S311 -- no secret
                logger.warning("%s Training goes on; trying again in %.1f s.", error, pause)
                self._refused = True
                self._stopping.wait(pause)
                wait = min(2 * wait, LONGEST_WAIT_S)

    def _given_up(self, where: str, error: StoreError, seconds: float) -> TrainingError:
        good = self.last_good or "none"
        return TrainingError(
            f"The checkpoint {where} could not be written in {seconds:.0f} s: {error} The last good one of this run: "
            f"{good}. Make room or bring the store back, then resume with ckpt_path='last'."
        )
