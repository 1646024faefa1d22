"""Seconds from the start of `shipline serve` to its first right answer, and the memory that it takes then.

    python benchmarks/startup.py [--rounds 7]

The artifact is that of the digits example, int8. Memory is the resident set, and the proportional set (shared pages
counted once), of the server's process after 100 answers.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import orjson

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples" / "digits"))


def publish(scratch: str) -> tuple[str, bytes, int]:
    """Train and export the digits; return the repository, a PNG and the digit on it."""
    import digits

    import shipline as sl

    sl.seed_everything(0)
    best = sl.ModelCheckpoint(monitor="val_acc", mode="max")
    trainer = sl.Trainer(max_epochs=4, default_root_dir=f"{scratch}/runs", callbacks=[best], enable_progress_bar=False)
    data = digits.DigitsData()
    # What is measured here is the start; another program's load must not keep the artifact from being published.
    recipe = sl.Recipe(precision="int8", min_speedup=0)
    sl.export(trainer.fit(digits.Digits(), data), recipe, to=f"{scratch}/models/digits")
    return f"{scratch}/models", data.val_pngs[0], int(data.val[0][1])


def one(repository: str, png: bytes, digit: int) -> dict[str, float]:
    """Start a server, wait for its first right answer, look at its memory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "shipline"), "serve", repository, "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            while (label := ask(client, png)) is None:
                if time.perf_counter() - began > 60:
                    raise SystemExit("no answer in 60 s")
                time.sleep(0.005)
            taken = time.perf_counter() - began
            if label != str(digit):
                raise SystemExit(f"wrong answer: {label}, not {digit}")
            for _ in range(100):
                ask(client, png)
            return {"seconds": taken, **memory(process.pid)}
    finally:
        process.terminate()
        process.wait()


def ask(client: httpx.Client, png: bytes) -> str | None:
    """Return the label, or None where the server is not ready."""
    try:
        answer = client.post("/models/digits/predict", content=png, headers={"content-type": "image/png"})
    except httpx.HTTPError:
        return None
    return str(orjson.loads(answer.content)["label"]) if answer.is_success else None


def memory(pid: int) -> dict[str, float]:
    """Return resident and proportional set in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines[1:]}
    return {"rss": sizes["Rss"], "pss": sizes["Pss"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shipline-bench-") as scratch:
        served = publish(scratch)
        found = [one(*served) for _ in range(arguments.rounds)]
    print("| `shipline serve` of the digits | median | range |\n|---|---|---|")
    for key, text in (("seconds", "start to first right answer, s"), ("rss", "RSS, MiB"), ("pss", "PSS, MiB")):
        values = [row[key] for row in found]
        print(f"| {text} | {statistics.median(values):.2f} | {min(values):.2f} to {max(values):.2f} |")


if __name__ == "__main__":
    main()
