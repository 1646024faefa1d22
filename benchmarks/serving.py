"""Requests a second of `shipline serve` and of a hand-written FastAPI endpoint: same model, one process each.

    python benchmarks/serving.py [--rounds 5] [--seconds 4] [--connections 1,32]

The rounds are interleaved, each server alone on the machine in its turn, so that a machine whose speed drifts is
equally unfair to both. The bodies are 64 different rows; answers are compared with onnxruntime's before anything is
counted. Needs wrk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from mlp import publish
from sklearn.datasets import load_digits

from shipline.artifact import open_model

HERE = Path(__file__).parent
ROWS = 64
SCRIPT = """
local requests, i = {}, 0
function init()
  for line in io.lines(os.getenv("BODIES")) do
    requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = "application/json"}, line)
  end
end
function request()
  i = i % #requests + 1
  return requests[i]
end
function done(summary, latency)
  local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  io.write(string.format('\\n{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "errors": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, bad))
end
"""


@dataclass
class Server:
    """A server to measure: how to start it, what to send, how to read its answer."""

    name: str
    command: list[str]
    path: str
    body: Callable[[list[float]], Any]
    output: Callable[[Any], list[float]]


def servers(repository: str, port: int) -> list[Server]:
    """Return the two."""
    shipline = [sys.executable, "-m", "shipline", "serve", repository, "--port", str(port)]
    fastapi = [sys.executable, "-m", "uvicorn", "fastapi_endpoint:app", "--port", str(port), "--no-access-log"]
    return [
        Server(
            "fastapi", [*fastapi, "--log-level", "warning"], "/predict",
            lambda row: {"x": row}, lambda answer: answer["output"],
        ),
        Server(
            "shipline", shipline, "/v2/models/mlp/infer",
            lambda row: {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": row}]},
            lambda answer: answer["outputs"][0]["data"],
        ),
    ]  # fmt: skip


def start(server: Server, url: str, model: Path, rows: np.ndarray, expected: np.ndarray) -> subprocess.Popen[bytes]:
    """Start it, wait for its first answer, and check all of them."""
    process = subprocess.Popen(
        server.command, cwd=HERE, env={**os.environ, "MODEL": str(model), "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 60
    while True:
        try:
            answers = [ask(server, url, row) for row in rows.tolist()]
            break
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                raise
            time.sleep(0.05)
    np.testing.assert_allclose(answers, expected, atol=1e-4)
    return process


def ask(server: Server, url: str, row: list[float]) -> list[float]:
    """Return the server's answer to a row."""
    body = json.dumps(server.body(row)).encode()
    request = urllib.request.Request(url + server.path, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return server.output(json.load(answer))


def load(server: Server, url: str, rows: np.ndarray, connections: int, seconds: int, scratch: Path) -> dict[str, float]:
    """Return what wrk measured."""
    bodies, script = scratch / "bodies", scratch / "load.lua"
    bodies.write_text("\n".join(json.dumps(server.body(row)) for row in rows.tolist()))
    script.write_text(SCRIPT)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script), url + server.path]
    done = subprocess.run(
        command, env={**os.environ, "BODIES": str(bodies)}, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    if found["errors"]:
        raise SystemExit(f"{server.name}: {found['errors']} errors")
    return {"rps": found["requests"] / found["seconds"], **found}


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """Return the CPU time that the process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(arguments: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """Return one row for each server, number of connections and round."""
    repository = publish(str(scratch))
    artifact = open_model(f"{repository}/mlp").stable()
    model = scratch / "model.onnx"
    model.write_bytes(artifact.read("model.onnx"))
    rows = (load_digits().data[:ROWS] / 16).round(4).astype(np.float32)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": rows})[0]
    found = []
    for number in range(arguments.rounds):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for server in servers(repository, port):
            url = f"http://127.0.0.1:{port}"
            process = start(server, url, model, rows, expected)
            try:
                load(server, url, rows, 32, 1, scratch)  # warm up
                for connections in arguments.connections:
                    before = cpu_seconds(process)
                    row = load(server, url, rows, connections, arguments.seconds, scratch)
                    cpu = (cpu_seconds(process) - before) / row["requests"] * 1e3
                    found.append(
                        {"server": server.name, "connections": connections, "round": number, **row, "cpu_ms": cpu}
                    )
            finally:
                process.terminate()
                process.wait()
    return found


def table(found: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return the medians, and the ratio of each round, in Markdown."""
    lines = [
        "| server | connections | requests/s | p50 ms | p99 ms | CPU ms a request | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for connections in arguments.connections:
        taken = {
            name: [r for r in found if (r["server"], r["connections"]) == (name, connections)]
            for name in ("fastapi", "shipline")
        }
        ratio = statistics.median(s["rps"] / f["rps"] for s, f in zip(taken["shipline"], taken["fastapi"], strict=True))
        for name, rounds in taken.items():
            rps, p50, p99, cpu = (
                statistics.median(r[key] for r in rounds) for key in ("rps", "p50_ms", "p99_ms", "cpu_ms")
            )
            shown = f"{ratio:.2f}" if name == "shipline" else "1"
            lines.append(f"| {name} | {connections} | {rps:,.0f} | {p50:.2f} | {p99:.2f} | {cpu:.3f} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=lambda text: [int(c) for c in text.split(",")], default=[1, 32])
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed. Run: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="shipline-bench-") as scratch:
        print(table(measure(arguments, Path(scratch)), arguments))


if __name__ == "__main__":
    main()
