"""Mixed load on a server, every answer checked, and its memory watched.

    python tests/support/soak.py [SECONDS]

Of a hundred requests 65 are good, 15 bad, 10 are cancelled by their callers, 5 arrive slowly, and 5 callers are killed
in the middle of theirs; models are loaded, replaced and unloaded meanwhile. Weights and bounds are those of Triton's
long-running stress and memory-growth tests, scaled down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import artifacts
import numpy as np
from bad_requests import BAD
from helpers import free_port

WEIGHTS = {"good": 65, "bad": 15, "cancelled": 10, "slow": 5, "killed": 5}
CALLERS = 12
GRAPHS = {"linear": artifacts.linear(), "total": artifacts.total(), "masked": artifacts.masked()}
SERVE = [sys.executable, "-m", "shipline", "serve"]
MAX_GROWTH_MB = 20.0


@dataclass
class Outcome:
    """What came of it."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)  # wrong answers, and refusals of good requests
    rss_mb: list[tuple[float, float]] = field(default_factory=list)  # when, MiB

    @property
    def growth_mb(self) -> float:
        """How much more memory the last quarter took than the second, by their medians."""
        values = [value for _, value in self.rss_mb]
        quarter = len(values) // 4
        return float(np.median(values[-quarter:]) - np.median(values[quarter : 2 * quarter]))


@dataclass(frozen=True)
class Asked:
    """A request as bytes, and whether the answer's numbers are right."""

    data: bytes
    right: Callable[[int, bytes], bool]


@contextlib.contextmanager
def serving(root: Path, command: list[str] = SERVE) -> Iterator[tuple[str, int]]:
    """A server of the soak's models in a process of its own; its address and process."""
    for name, graph in GRAPHS.items():
        artifacts.publish(f"{root}/{name}", graph)
    artifacts.publish(f"{root}/churned", GRAPHS["linear"])
    port = free_port()
    options = ["--port", str(port), "--admin-without-key", "--log-level", "error"]
    process = subprocess.Popen([*command, str(root), *options])
    try:
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        assert process.wait(30) == 0


async def soak(url: str, pid: int, seconds: float, seed: int = 0) -> Outcome:
    """Load the server for so long."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    caller = _Caller(parts.hostname, parts.port, Outcome(), time.monotonic() + seconds)
    await caller.until_ready()
    async with asyncio.TaskGroup() as group:
        for number in range(CALLERS):
            group.create_task(caller.ask_on(random.Random(seed + number)))
        group.create_task(caller.churn())
        group.create_task(caller.watch(pid))
    return caller.outcome


async def cycle(url: str, pid: int, times: int) -> Outcome:
    """Load and unload a model so many times, while others are asked."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    caller = _Caller(parts.hostname, parts.port, Outcome(), float("inf"))
    await caller.until_ready()
    chance = random.Random(0)

    async def ask() -> None:
        while True:
            caller.outcome.counts["good"] += 1
            await caller._good(chance)

    asking = asyncio.create_task(ask())
    for number in range(times):
        for verb in ("unload", "load"):
            await caller.order(verb, "churned", {200})
        if number % 10 == 0:
            caller.outcome.rss_mb.append((number, _rss_mb(pid)))
    asking.cancel()
    return caller.outcome


class _Caller:
    """Everybody who asks."""

    def __init__(self, host: str, port: int, outcome: Outcome, end: float) -> None:
        self._host, self._port, self.outcome, self._end = host, port, outcome, end

    async def until_ready(self) -> None:
        for _ in range(600):
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if (await self._whole(b"GET /v2/health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"))[0] == 200:
                    return
            await asyncio.sleep(0.05)
        raise AssertionError("the server is not ready")

    async def ask_on(self, chance: random.Random) -> None:
        kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
        while time.monotonic() < self._end:
            kind = chance.choices(kinds, weights)[0]
            self.outcome.counts[kind] += 1
            await getattr(self, f"_{kind}")(chance)

    async def watch(self, pid: int) -> None:
        began = time.monotonic()
        while time.monotonic() < self._end:
            self.outcome.rss_mb.append((time.monotonic() - began, _rss_mb(pid)))
            await asyncio.sleep(0.25)

    async def churn(self) -> None:
        """Load, replace and unload; `linear` is replaced by itself under everybody's requests."""
        known = {"load": {200}, "unload": {200, 404}}
        while time.monotonic() < self._end:
            for verb, name in (("load", "churned"), ("load", "linear"), ("unload", "churned")):
                await self.order(verb, name, known[verb])

    async def order(self, verb: str, name: str, known: set[int]) -> None:
        """Load or unload a model."""
        status, body = await self._whole(_post(f"/v2/repository/models/{name}/{verb}", b"{}"))
        self.outcome.counts[verb] += 1
        if status not in known:
            self.outcome.faults.append(f"{verb} of {name}: {status} {body[:200]!r}")

    async def _good(self, chance: random.Random) -> None:
        await self._expect(_good(chance))

    async def _slow(self, chance: random.Random) -> None:
        await self._expect(_good(chance), pieces=5)

    async def _bad(self, chance: random.Random) -> None:
        case = chance.choice([case for case in BAD if case.model in GRAPHS and len(case.body) < 20_000])
        status, body = await self._whole(_post(f"/v2/models/{case.model}/infer", case.body))
        if status != 400:
            self.outcome.faults.append(f"{case.name}: {status} {body[:200]!r}")

    async def _cancelled(self, chance: random.Random) -> None:
        async with self._connected() as (_, writer):
            writer.write(_good(chance).data)
            await asyncio.sleep(chance.choice([0, 0, 0.0005, 0.002]))

    async def _killed(self, chance: random.Random) -> None:
        async with self._connected() as (_, writer):
            data = _good(chance).data
            writer.write(data[: chance.randrange(1, len(data))])
            await asyncio.sleep(0)
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end

    async def _expect(self, asked: Asked, pieces: int = 1) -> None:
        try:
            status, body = await self._whole(asked.data, pieces)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.outcome.faults.append(f"a good request: {error!r}")
            return
        if not asked.right(status, body):
            self.outcome.faults.append(f"a good request: {status} {body[:300]!r}")

    async def _whole(self, data: bytes, pieces: int = 1) -> tuple[int, bytes]:
        """Ask over a connection of its own, in so many pieces; return status and body."""
        async with self._connected() as (reader, writer):
            size = -(-len(data) // pieces)
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
                await writer.drain()
                if pieces > 1:
                    await asyncio.sleep(0.02)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length))

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _post(path: str, body: bytes) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _good(chance: random.Random) -> Asked:
    """One to eight random rows for `linear` or `total`, whose answers are known."""
    name = chance.choice(["linear", "linear", "total"])
    width = 4 if name == "linear" else chance.randrange(1, 9)
    x = np.array([[chance.uniform(-2, 2) for _ in range(width)] for _ in range(chance.randrange(1, 9))], np.float32)
    expected = GRAPHS[name].function({"x": x})["y"]
    item = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}

    def right(status: int, body: bytes) -> bool:
        if status != 200:
            return False
        (output,) = json.loads(body)["outputs"]
        return np.allclose(np.reshape(output["data"], output["shape"]), expected, rtol=1e-4, atol=1e-5)

    return Asked(_post(f"/v2/models/{name}/infer", json.dumps({"inputs": [item]}).encode()), right)


def _rss_mb(pid: int) -> float:
    """Resident memory of a process and of those that it has started."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            if int(status.parent.name) == pid or f"PPid:\t{pid}\n" in text:
                total += next((int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")), 0)
    return total / 1024


def main() -> None:
    """Soak a server of this checkout and say what came of it; exit with 1 where something is wrong."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    with tempfile.TemporaryDirectory(prefix="shipline-soak-") as root, serving(Path(root)) as (url, pid):
        outcome = asyncio.run(soak(url, pid, seconds))
    counts = ", ".join(f"{number:,} {kind}" for kind, number in outcome.counts.items())
    print(f"{seconds:g} s: {counts}")
    print(f"wrong answers and refused good requests: {len(outcome.faults)}", *outcome.faults[:10], sep="\n  ")
    print(f"memory: {outcome.rss_mb[-1][1]:.0f} MiB; last quarter beside the second: {outcome.growth_mb:+.1f} MiB")
    sys.exit(bool(outcome.faults) or outcome.growth_mb > MAX_GROWTH_MB)


if __name__ == "__main__":
    main()
