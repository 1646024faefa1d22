"""Requests a second of `shipline serve` beside a hand-written FastAPI endpoint, Mosec, and onnxruntime in process.

    python benchmarks/serving.py [--models mlp,cnn,minilm] [--workers 1] [--rounds 5] [--seconds 4] [--connections 1,32]
                                 [--mosec .venv/mosec/bin/python]

The rounds are interleaved, each server alone on the machine in its turn, so that a machine whose speed drifts is
equally unfair to all. Every server has the same ONNX file, one thread a batch, and as many processes. The bodies are 64
different rows, one a request; answers are compared with onnxruntime's before anything is counted. Needs wrk; Mosec
takes part if a Python that has it (pip install mosec onnxruntime orjson) is named.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from serving_models import ROWS, Arrays, Workload, session, workload

HERE = Path(__file__).parent
OIP = {"float32": "FP32", "int64": "INT64"}
JSON_LENGTH = "Inference-Header-Content-Length"
# The bodies' lengths stand in a line each, then the bodies: binary ones hold any byte.
SCRIPT = """
local requests, i = {}, 0
function init()
  local file = io.open(os.getenv("BODIES"), "rb")
  local headers = {["Content-Type"] = os.getenv("CONTENT_TYPE")}
  if os.getenv("JSON_LENGTH") then headers["Inference-Header-Content-Length"] = os.getenv("JSON_LENGTH") end
  local lengths = {}
  for n in file:read("*l"):gmatch("%d+") do lengths[#lengths + 1] = tonumber(n) end
  for _, n in ipairs(lengths) do requests[#requests + 1] = wrk.format("POST", nil, headers, file:read(n)) end
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


@dataclass(frozen=True)
class Body:
    """A request's bytes, and the headers that say what they are."""

    data: bytes
    json_length: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What is sent with it."""
        if self.json_length is None:
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", JSON_LENGTH: str(self.json_length)}


@dataclass(frozen=True)
class Server:
    """A server to measure: how to start it, what to send, how to read its answer."""

    name: str
    command: list[str]
    path: str
    body: Callable[[Arrays], Body]
    output: Callable[[bytes, str | None], np.ndarray]


def servers(model: str, repository: Path, port: int, arguments: argparse.Namespace) -> list[Server]:
    """Return those that take part."""
    count = str(arguments.workers)
    shipline = [sys.executable, "-m", "shipline", "serve", str(repository), "--port", str(port), "--workers", count]
    fastapi = [
        sys.executable, "-m", "uvicorn", "fastapi_endpoint:app", "--port", str(port), "--workers", count,
        "--no-access-log", "--log-level", "warning",
    ]  # fmt: skip
    path = f"/v2/models/{model}/infer"
    found = [
        Server("fastapi", fastapi, "/predict", listed, by_name),
        Server("shipline", [*shipline, "--log-level", "warning"], path, described, flat),
        Server("shipline, binary", [*shipline, "--log-level", "warning"], path, binary, raw),
    ]
    if arguments.mosec:
        command = [arguments.mosec, "peers/mosec_endpoint.py", "--port", str(port), "--address", "127.0.0.1"]
        found.insert(1, Server("mosec", command, "/inference", listed, by_name))
    return found


def listed(row: Arrays) -> Body:
    """The row as FastAPI's endpoint and Mosec's take it."""
    return Body(json.dumps({"inputs": {name: array.ravel().tolist() for name, array in row.items()}}).encode())


def described(row: Arrays) -> Body:
    """The row in the Open Inference Protocol's JSON."""
    inputs = [
        {"name": name, "shape": list(a.shape), "datatype": OIP[a.dtype.name], "data": a.ravel().tolist()}
        for name, a in row.items()
    ]
    return Body(json.dumps({"inputs": inputs}).encode())


def binary(row: Arrays) -> Body:
    """The row as bytes behind the JSON, as Triton's clients send it."""
    inputs = [
        {
            "name": name, "shape": list(a.shape), "datatype": OIP[a.dtype.name],
            "parameters": {"binary_data_size": a.nbytes},
        }
        for name, a in row.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return Body(head + b"".join(array.tobytes() for array in row.values()), len(head))


def by_name(answer: bytes, json_length: str | None) -> np.ndarray:
    """Read {"output": [...]}."""
    return np.array(json.loads(answer)["output"], np.float32).ravel()


def flat(answer: bytes, json_length: str | None) -> np.ndarray:
    """Read the protocol's JSON."""
    return np.array(json.loads(answer)["outputs"][0]["data"], np.float32)


def raw(answer: bytes, json_length: str | None) -> np.ndarray:
    """Read the bytes behind the JSON."""
    assert json_length is not None
    return np.frombuffer(answer[int(json_length) :], np.float32)


def start(server: Server, url: str, work: Workload, workers: int) -> subprocess.Popen[bytes]:
    """Start it, wait for its first answer, and check all of them."""
    environment = {**os.environ, "MODEL": str(work.file), "WORKERS": str(workers), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(server.command, cwd=HERE, env=environment, **quiet)
    deadline = time.monotonic() + 120
    while True:
        try:
            answers = [ask(server, url, work.row(number)) for number in range(ROWS)]
            break
        except OSError:
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                raise
            time.sleep(0.05)
    np.testing.assert_allclose(np.stack(answers), work.expected, atol=1e-4)
    return process


def ask(server: Server, url: str, row: Arrays) -> np.ndarray:
    """Return the server's answer to a row."""
    body = server.body(row)
    request = urllib.request.Request(url + server.path, body.data, body.headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return server.output(answer.read(), answer.headers.get(JSON_LENGTH))


def load(server: Server, url: str, work: Workload, connections: int, seconds: float, scratch: Path) -> dict[str, float]:
    """Return what wrk measured."""
    bodies, script = scratch / "bodies", scratch / "load.lua"
    sent = [server.body(work.row(number)) for number in range(ROWS)]
    lengths = " ".join(str(len(body.data)) for body in sent)
    bodies.write_bytes(lengths.encode() + b"\n" + b"".join(body.data for body in sent))
    script.write_text(SCRIPT)
    environment = {**os.environ, "BODIES": str(bodies), "CONTENT_TYPE": sent[0].headers["Content-Type"]}
    if sent[0].json_length is not None:
        environment["JSON_LENGTH"] = str(sent[0].json_length)
    command = [
        "wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--timeout", "30s", "-s", str(script),
        url + server.path,
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    if found["errors"]:
        raise SystemExit(f"{server.name}: {found['errors']} errors")
    return {"rps": found["requests"] / found["seconds"], **found}


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, directly or not."""
    own = Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *(one for child in own.read_text().split() for one in family(int(child)))] if own.exists() else []


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a server's processes have used."""
    ticks = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_mib(pid: int) -> float:
    """Return the memory of a server's processes, pages that they share counted once."""
    found = 0
    for one in family(pid):
        pss = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
        found += int(pss[1]) if pss else 0
    return found / 1024


def limit(work: Workload, seconds: float) -> float:
    """Return the rows a second of onnxruntime in process: the best of batch 1 and 32, one session or one a core."""
    count = os.cpu_count() or 1
    best = 0.0
    for rows in (1, 32):
        batch = {name: np.ascontiguousarray(array[:rows]) for name, array in work.rows.items()}
        for sessions in ([session(work.file, count)], [session(work.file) for _ in range(count)]):
            best = max(best, _together(sessions, batch, rows, seconds))
    return best


def _together(sessions: list[Any], batch: Arrays, rows: int, seconds: float) -> float:
    def run(one: Any) -> float:
        done, began = 0, time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            one.run(None, batch)
            done += rows
        return done / taken

    with ThreadPoolExecutor(len(sessions)) as pool:
        return sum(pool.map(run, sessions))


def measure(work: Workload, repository: Path, scratch: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each server, number of connections and round; and the limits."""
    found: list[dict[str, Any]] = []
    for number in range(arguments.rounds):
        found.append({"server": "onnxruntime", "round": number, "rps": limit(work, arguments.seconds / 4)})
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for server in servers(work.name, repository, port, arguments):
            url = f"http://127.0.0.1:{port}"
            process = start(server, url, work, arguments.workers)
            try:
                load(server, url, work, 32, 1, scratch)  # warm up
                for connections in arguments.connections:
                    before = cpu_seconds(process.pid)
                    row = load(server, url, work, connections, arguments.seconds, scratch)
                    row["cpu_ms"] = (cpu_seconds(process.pid) - before) / row["requests"] * 1e3
                    row["pss"] = pss_mib(process.pid)
                    found.append({"server": server.name, "connections": connections, "round": number, **row})
            finally:
                process.terminate()
                process.wait()
    return found


def table(found: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return the medians, and the ratios of each round to FastAPI and to onnxruntime, in Markdown."""
    names = list(dict.fromkeys(row["server"] for row in found if row["server"] != "onnxruntime"))
    limits = [row["rps"] for row in found if row["server"] == "onnxruntime"]
    lines = [
        f"onnxruntime in process: {statistics.median(limits):,.0f} rows/s",
        "",
        "| server | connections | requests/s | p50 ms | p99 ms | CPU ms | MiB | of fastapi | of onnxruntime |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for connections in arguments.connections:
        rounds = {
            name: [row for row in found if (row["server"], row.get("connections")) == (name, connections)]
            for name in names
        }
        for name, rows in rounds.items():
            middle = {
                key: statistics.median(row[key] for row in rows) for key in ("rps", "p50_ms", "p99_ms", "cpu_ms", "pss")
            }
            beside = [row["rps"] / base["rps"] for row, base in zip(rows, rounds["fastapi"], strict=True)]
            share = [row["rps"] / most for row, most in zip(rows, limits, strict=True)]
            lines.append(
                f"| {name} | {connections} | {middle['rps']:,.0f} | {middle['p50_ms']:.2f} | {middle['p99_ms']:.2f} | "
                f"{middle['cpu_ms']:.3f} | {middle['pss']:.0f} | {statistics.median(beside):.2f} | "
                f"{statistics.median(share):.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=["mlp", "cnn", "minilm"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--connections", type=lambda text: [int(c) for c in text.split(",")], default=[1, 32])
    parser.add_argument("--mosec", help="a Python that has Mosec")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed. Run: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="shipline-bench-") as scratch:
        for model in arguments.models:
            repository = Path(scratch) / model / "models"
            work = workload(model, repository)
            print(f"\n### {model}, {arguments.workers} process(es)\n", flush=True)
            print(table(measure(work, repository, Path(scratch), arguments), arguments), flush=True)


if __name__ == "__main__":
    main()
