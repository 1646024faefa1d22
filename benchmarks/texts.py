"""Texts a second from a language model behind HTTP, one text a request, each answer checked.

    python benchmarks/texts.py [--connections 32] [--seconds 5] [--rounds 3]

The model is all-MiniLM-L6-v2 with its own limit of 256 tokens, the texts are sentences of scikit-learn's descriptions
(7 to 73 tokens). "by hand" is FastAPI with transformers (texts_endpoint.py). Shipline serves it in float32 on
onnxruntime: padded to the limit, as graphs of a fixed shape need it, and padded as the texts need. One process each,
the load on the same cores; rounds are interleaved, medians are shown.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

import shipline as sl
from shipline.loadtest.engine import LoadTest
from shipline.loadtest.results import Result

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))
BY_HAND = "by hand"


def publish(repository: str) -> dict[str, str]:
    """Export the model in each way; return the repositories by what the table calls them."""
    from texts import MINILM, SENTENCES

    ways = {"shipline, padded to 256": None, "shipline, padded to a multiple of 16": 16}
    for name, unit in ways.items():
        sl.export(sl.huggingface(MINILM, pad_to_multiple_of=unit), rows=SENTENCES, to=f"{repository}/{name}/minilm")
    return {name: f"{repository}/{name}" for name in ways}


@contextlib.contextmanager
def served(repository: str | None) -> Iterator[str]:
    """Start a server of a repository, or the one by hand; yield its URL once it answers."""
    from texts import MINILM

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["shipline", "serve", str(repository), "--port", str(port), "--log-level", "warning"]
    if repository is None:
        command = ["uvicorn", "texts_endpoint:app", "--port", str(port), "--no-access-log", "--log-level", "warning"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=HERE, env={**os.environ, "MODEL": str(MINILM)}, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while not answers(url):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    """Whether the server answers a text."""
    try:
        return httpx.post(f"{url}/models/minilm/predict", json="a text", timeout=60).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def main() -> None:
    """Print the table."""
    from texts import SENTENCES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "texts.jsonl"
        rows.write_text("\n".join(map(json.dumps, SENTENCES)))
        servers: dict[str, str | None] = {BY_HAND: None, **publish(f"{scratch}/models")}
        found: dict[str, list[Result]] = {name: [] for name in servers}
        for _ in range(options.rounds):
            for name, repository in servers.items():
                with served(repository) as url:
                    test = LoadTest(
                        url=url, model="minilm", rows=str(rows), connections=options.connections,
                        seconds=options.seconds, tolerance=0.02,
                    )  # fmt: skip
                    found[name] += test.run()
    show(found)


def show(found: dict[str, list[Result]]) -> None:
    """Print what was measured: right answers a second, and milliseconds."""
    rates = {name: statistics.median(result.goodput for result in results) for name, results in found.items()}
    print("| server | texts/s | p50 / p99 ms | times by hand |\n|---|---|---|---|")
    for name, results in found.items():
        taken = [result.percentiles() for result in results]
        p50, p99 = (statistics.median(each[key] or 0.0 for each in taken) for key in ("p50", "p99"))
        print(f"| {name} | {rates[name]:,.0f} | {p50:.0f} / {p99:.0f} | {rates[name] / rates[BY_HAND]:.2f} |")


if __name__ == "__main__":
    main()
