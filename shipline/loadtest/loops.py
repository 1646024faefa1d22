"""The loads: a closed loop asks again when it is answered, an open loop when it is time.

A closed loop slows down with the server, and so hides what users would have felt: while a server stalls, nothing is
sent that could be slow ("coordinated omission": Gil Tene, How NOT to Measure Latency; https://github.com/giltene/wrk2).
The open loop's requests are due at the times of a Poisson process, and each one's latency counts from then on, whether
it could be sent or had to wait.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Sequence
from time import monotonic  # that of uvloop's loops stands still for a millisecond

import httpx
import numpy as np

from shipline.client.base import KEEPALIVE_S
from shipline.loadtest.http import Answer, BadAnswerError, Connection
from shipline.loadtest.results import RIGHT, TIMEOUT, WRONG, Result
from shipline.loadtest.rows import Row

# Timers of event loops go by the millisecond: who is due within it is sent now, and counted from now.
TICK_S = 1e-3


class Caller:
    """Asks over a bounded number of connections, which are kept; and counts what comes back."""

    def __init__(self, url: httpx.URL, connections: int, timeout: float) -> None:
        self._url = url
        self._context = ssl.create_default_context() if url.scheme == "https" else None
        self._places = asyncio.Semaphore(connections)
        self._idle: list[Connection] = []  # the last used first: few connections stay warm at a low rate
        self._timeout = timeout

    async def ask(self, message: bytes) -> Answer:
        """Return the answer to a request; OSError or BadAnswerError where there is none."""
        async with self._places:
            connection = await self._connection()
            try:
                answer = await connection.ask(message)
            except BaseException:
                connection.close()  # the answer may come yet, and would be taken for the next one
                raise
            self._idle.append(connection)
            return answer

    async def count(self, row: Row, due: float, result: Result) -> None:
        """Ask a row that was due at a time, and put what came back into the result."""
        try:
            async with asyncio.timeout(due + self._timeout - monotonic()):
                answer = await self.ask(row.message)
        except TimeoutError:
            result.counts[TIMEOUT] += 1
            result.latencies.append(monotonic() - due)
        except ConnectionRefusedError:
            result.counts["refused"] += 1
        except OSError:
            result.counts["broken"] += 1
        except BadAnswerError:
            result.counts["no HTTP"] += 1
        else:
            if answer.status == 200:
                result.latencies.append(monotonic() - due)
                result.counts[RIGHT if row.is_right(answer) else WRONG] += 1
            else:
                result.counts[str(answer.status)] += 1

    def close(self) -> None:
        """End the connections."""
        for connection in self._idle:
            connection.close()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and monotonic() - connection.used < KEEPALIVE_S:
                return connection
            connection.close()
        return await Connection.open(self._url, self._context)


async def closed_loop(caller: Caller, rows: Sequence[Row], connections: int, seconds: float) -> Result:
    """Ask over so many connections, on each again as soon as it is answered."""
    turns = itertools.cycle(rows)
    result, begins = Result(f"{connections} connections"), monotonic()

    async def keep_asking() -> None:
        while (now := monotonic()) < begins + seconds:
            await caller.count(next(turns), now, result)

    await asyncio.gather(*(keep_asking() for _ in range(connections)))
    result.seconds = max(monotonic() - begins, seconds)
    return result


async def open_loop(caller: Caller, rows: Sequence[Row], rate: float, seconds: float) -> Result:
    """Ask at the times of a Poisson process, whatever the answers do."""
    turns = itertools.cycle(rows)
    result, begins = Result(f"{rate:g}/s"), monotonic()
    async with asyncio.TaskGroup() as asking:
        for at in arrivals(rate, seconds):
            due = begins + at
            await asyncio.sleep(max(due - TICK_S - monotonic(), 0))
            now = monotonic()
            result.late.append(max(now - due, 0))
            asking.create_task(caller.count(next(turns), min(due, now), result))
    result.seconds = max(monotonic() - begins, seconds)
    return result


def arrivals(rate: float, seconds: float) -> list[float]:
    """Return the times from 0 to `seconds` at which a Poisson process of this rate has its events; always the same."""
    times: list[float] = []
    generator, now = np.random.default_rng(0), 0.0
    while True:
        for gap in generator.exponential(1 / rate, 1024).tolist():
            now += gap
            if now >= seconds:
                return times
            times.append(now)
