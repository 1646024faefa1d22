"""Runs that meet faults on a Ray cluster of three nodes, all on this machine.

    python cluster_faults.py DIRECTORY [SCENARIO ...]

Writes into DIRECTORY/found.json what came of each. One cluster serves all; its head is killed at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import psutil
import pytest
import ray
import torch
from clusters import ByHand, Fault, Paced, Seen, add_node, alive_workers, ray_cluster, train
from helpers import wait_until
from training import new_trainer

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.errors import ShiplineError
from shipline.train import RayCluster
from shipline.train.launch.cluster import _PROBE, _REFUSED
from shipline.train.launch.lease import Lease

SHIPPED = """
import json, sys
from pathlib import Path
import shipline as sl
import besides  # lies beside this script, and nowhere else


def train(loop):
    import ray
    return loop.strategy.gather({
        "module": besides.__file__, "value": besides.VALUE, "text": Path("labels.txt").read_text(),
        "node": ray.get_runtime_context().get_node_id(),
    })


if __name__ == "__main__":
    cluster = sl.train.RayCluster(runtime_env={"working_dir": "."}, placement="STRICT_SPREAD", wait_s=60)
    trainer = sl.Trainer(workers=2, accelerator="cpu", default_root_dir=sys.argv[1], cluster=cluster)
    print(json.dumps(trainer.run(train).result))
"""
STEPS = 32  # 4 epochs of 8
LONG_S = 240.0


class Scenarios:
    """Each returns what the test looks at; the first of them what the others are compared with."""

    def __init__(self, cluster: Any, root: Path) -> None:
        self.cluster, self.root = cluster, root
        self.undisturbed: dict[str, torch.Tensor] = {}

    def marks(self, name: str) -> Path:
        """A directory for what faults have happened."""
        path = self.root / f"{name}-marks"
        path.mkdir()
        return path

    def difference(self, module: torch.nn.Module) -> float:
        """The largest difference to the weights of the undisturbed run."""
        pairs = zip(self.undisturbed.values(), module.state_dict().values(), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)

    def faults(self, name: str) -> list[dict[str, Any]]:
        """What the run has written down of its faults."""
        return json.loads((self.root / name / "net/version_0/faults.json").read_text())

    def checkpoints(self, name: str) -> list[str]:
        """The run's checkpoints; each is opened and read in full."""
        found = sorted((self.root / name / "net/version_0/checkpoints").iterdir())
        for path in found:
            checkpoint = open_checkpoint(str(path))
            assert [checkpoint.read(file) for file in checkpoint.manifest.files]
        return [path.name for path in found]

    def caught(self, name: str, *callbacks: sl.Callback, **options: Any) -> dict[str, Any]:
        """What a run that fails says, and how long it took."""
        start = time.monotonic()
        try:
            train(self.root / name, *callbacks, **options)
        except ShiplineError as error:
            return {"error": type(error).__name__, "text": str(error), "seconds": time.monotonic() - start}
        return {"error": None}

    # ---- in order ----------------------------------------------------------------------------------------------------

    def plain(self) -> Any:
        """Nothing happens; while it runs, its processes listen on the loopback alone."""
        found: set[str] = set()
        ended = threading.Event()

        def scan() -> None:
            while not ended.wait(0.2):
                found.update(listening(os.getpid()))

        scanner = threading.Thread(target=scan)
        scanner.start()
        try:
            trainer, module = train(self.root / "plain")
        finally:
            ended.set()
            scanner.join()
        self.undisturbed = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        return {"steps": trainer.global_step, "addresses": sorted(found)}

    def stranger(self) -> Any:
        """A client without the token."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
        done = subprocess.run([sys.executable, "-c", _PROBE, self.cluster.address], env=environment)
        return {"refused": done.returncode == _REFUSED}

    def survived(self) -> Any:
        """A killed worker, a crashed one, a broken network, one that is told to go, and a lost node: all in one run."""
        marks = self.marks("survived")
        lost = marks / "lose node-26"
        removing = threading.Thread(target=self._remove_node, args=(lost,), daemon=True)
        removing.start()
        faults = [
            Fault("kill", 7, 1, marks), Fault("crash", 13, 0, marks), Fault("cut", 16, 1, marks),
            Fault("term", 19, 1, marks),
            Fault("lose node", 26, self.cluster.head_node.node_id, marks),
        ]  # fmt: skip
        trainer, module = train(self.root / "survived", *faults, cluster={"max_losses": 4})
        removing.join()
        return {
            "steps": trainer.global_step, "difference": self.difference(module), "faults": self.faults("survived"),
            "checkpoints": self.checkpoints("survived"), "actors": workers_left(),
        }  # fmt: skip

    def _remove_node(self, mark: Path) -> None:
        wait_until(mark.exists, LONG_S)
        node = next(node for node in self.cluster.worker_nodes if node.node_id == mark.read_text())
        self.cluster.remove_node(node, allow_graceful=False)

    def raised(self) -> Any:
        """An error that comes at each attempt."""
        marks = self.marks("raised")
        found = self.caught("raised", Fault("raise", 5, 1, marks, again=True), cluster={"max_failures": 1})
        return {**found, "faults": self.faults("raised"), "actors": workers_left()}

    def no_memory(self) -> Any:
        """A worker that may take no more memory."""
        return self.caught("no-memory", Fault("no memory", 4, 1, self.marks("no-memory")))

    def not_a_number(self) -> Any:
        """Weights of one worker become NaN: no checkpoint has them."""
        found = self.caught("nan", Fault("nan", 10, 1, self.marks("nan")))
        return {**found, "checkpoints": self.checkpoints("nan")}

    def by_hand(self) -> Any:
        """A loop by hand, undisturbed, and one whose worker 1 is told that it will be taken away."""
        found = {}
        for name, marks in {"alone": None, "told": self.marks("by-hand")}.items():
            sl.seed_everything(1)
            trainer = new_trainer(self.root / "by-hand", workers=2, name=name, cluster=RayCluster(wait_s=60))
            found[name] = trainer.run(ByHand(marks)).result
        faults = json.loads((self.root / "by-hand/told/version_0/faults.json").read_text())
        return {"same": found["alone"] == found["told"], "faults": faults}

    def shipped(self) -> Any:
        """A script whose directory, a module and a file in it, no node has."""
        folder = self.root / "shipped"
        folder.mkdir()
        (folder / "script.py").write_text(SHIPPED)
        (folder / "besides.py").write_text("VALUE = 42")
        (folder / "labels.txt").write_text("cat dog")
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "script.py", str(self.root / "shipped-runs")], cwd=folder, text=True,
            env={**os.environ, "RAY_ADDRESS": self.cluster.address}, capture_output=True, timeout=LONG_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return {"folder": str(folder), "workers": json.loads(done.stdout.splitlines()[-1])}

    def owned(self) -> Any:
        """A second driver of a run that has one."""
        run = sl.store.open_store(str(self.root / "survived/net/version_0"))
        with Lease(run):
            return self.caught("survived", ckpt_path="last", epochs=5)

    def elastic(self) -> Any:
        """Three workers, two, three again; 30 rows a step all the time."""
        marks, seen = self.marks("elastic"), self.root / "seen"
        seen.mkdir()
        while len(self.cluster.list_all_nodes()) < 3:  # one was lost before
            add_node(self.cluster)
        trained: Future[sl.Trainer] = Future()

        def run() -> None:
            try:
                trainer, _ = train(
                    self.root / "elastic", Fault("lose node", 7, self.cluster.head_node.node_id, marks), Seen(seen),
                    Paced(2, 1.0), count=240, epochs=6, every=2, workers=(2, 3), cluster={"resize_check_s": 2.0},
                )  # fmt: skip
                trained.set_result(trainer)
            except BaseException as error:
                trained.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        self._remove_node(marks / "lose node-7")
        wait_until(lambda: trained.done() or 2 in rows_of(seen)["workers"], LONG_S)
        add_node(self.cluster)  # which only the main thread can
        trainer = trained.result(LONG_S)
        return {"steps": trainer.global_step, "rows": rows_of(seen), "faults": self.faults("elastic")}

    def resumed(self) -> Any:
        """The run whose cluster is gone goes on on one of its own."""
        trainer, module = train(self.root / "headless", ckpt_path="last")
        return {"steps": trainer.global_step, "difference": self.difference(module)}

    def open(self) -> Any:
        """A cluster that lets in everybody."""
        with ray_cluster(1, token=False) as cluster, pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", cluster.address)
            return self.caught("open")

    def headless(self) -> Any:
        """A driver, a process of its own, is told to end; the next one's cluster loses its head."""
        root, marks = self.root / "headless", self.marks("headless")
        told = self._driver("told", root, marks)
        _, errors = told.communicate(timeout=LONG_S)
        saved = self.checkpoints("headless")
        driver = self._driver("headless", root, marks)
        wait_until((marks / "lose node-24").exists, LONG_S)
        start = time.monotonic()
        os.kill(self.cluster.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
        _, lost = driver.communicate(timeout=LONG_S)
        return {
            "told": told.returncode, "told errors": errors[-3000:], "saved": saved, "code": driver.returncode,
            "seconds": time.monotonic() - start, "errors": lost[-3000:],
        }  # fmt: skip

    def _driver(self, what: str, root: Path, marks: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, what, str(root), str(marks)],
            env={**os.environ, "RAY_ADDRESS": self.cluster.address}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip


def told(root: Path, marks: Path) -> None:
    """A driver that gets SIGTERM."""
    train(root, Fault("term driver", 10, 0, marks), Paced(2, 0.3))


def headless(root: Path, marks: Path) -> None:
    """A driver that goes on, and whose workers stop in the middle."""
    train(root, Fault("lose node", 24, 1, marks), ckpt_path="last", cluster={"head_timeout_s": 4.0})


def listening(pid: int) -> set[str]:
    """The addresses on which the children of a process listen."""
    found = set()
    for process in psutil.Process(pid).children(recursive=True):
        try:
            connections = process.net_connections("inet")
        except psutil.Error:
            continue
        found |= {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    return found


def workers_left() -> int:
    """How many processes of workers there still are a moment after a run is over."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: alive_workers() == 0)
    return alive_workers()


def rows_of(seen: Path) -> dict[str, Any]:
    """What counts of the rows given: how many a step had, how often each came in an epoch, how many workers there were.

    What was made again counts as it was the last time. An attempt begins at a batch of a step: those before it count.
    """
    steps: dict[tuple[int, int], dict[int, dict[int, list[int]]]] = {}  # rows by attempt, by batch
    worlds = set()
    for path in seen.iterdir():
        for line in path.read_text().splitlines():
            epoch, step, part, attempt, workers, *rows = map(int, line.split())
            worlds.add(workers)
            steps.setdefault((epoch, step), {}).setdefault(attempt, {}).setdefault(part, []).extend(rows)
    made = {step: [row for part in _last(attempts).values() for row in part] for step, attempts in steps.items()}
    epochs = Counter((epoch, row) for (epoch, _), rows in made.items() for row in rows)
    return {
        "sizes": sorted({len(rows) for rows in made.values()}), "workers": sorted(worlds),
        "rows": len(epochs), "times": sorted(set(epochs.values())),
    }  # fmt: skip


def _last(attempts: dict[int, dict[int, list[int]]]) -> dict[int, list[int]]:
    """The batches of a step of which each attempt went on with what those before it had saved."""
    made: dict[int, list[int]] = {}
    for _, parts in sorted(attempts.items()):
        made = {part: rows for part, rows in made.items() if part < min(parts)} | parts
    return made


def main(root: Path, *names: str) -> None:
    """Run all, or those that are named and what they need, whatever becomes of each."""
    found: dict[str, Any] = {}
    with ray_cluster(3) as cluster:
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        scenarios = Scenarios(cluster, root)
        for name in ("plain", *(names or ORDER)):
            if name == "headless":
                ray.shutdown()
            noted(found, name, getattr(scenarios, name))
    if "headless" in found:
        noted(found, "resumed", scenarios.resumed)
        noted(found, "open", scenarios.open)
    (root / "found.json").write_text(json.dumps(found))


ORDER = (
    "stranger",
    "survived",
    "raised",
    "no_memory",
    "not_a_number",
    "by_hand",
    "shipped",
    "owned",
    "elastic",
    "headless",
)


def noted(found: dict[str, Any], name: str, scenario: Callable[[], Any]) -> None:
    """Run one."""
    start = time.monotonic()
    try:
        found[name] = scenario()
    except BaseException:
        found[name] = {"trace": traceback.format_exc()}
    print(f"{name}: {time.monotonic() - start:.1f} s", found[name], file=sys.stderr, flush=True)


if __name__ == "__main__":
    if sys.argv[1] in ("told", "headless"):
        {"told": told, "headless": headless}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main(Path(sys.argv[1]), *sys.argv[2:])
