"""What searches have measured on this machine, so that one that is repeated, or was killed, need not do it again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from shipline.artifact import Verdict
from shipline.backends.cores import cores
from shipline.export.candidate import Candidate
from shipline.export.latency import Latency
from shipline.export.recipe import Recipe
from shipline.export.source import digest_of
from shipline.export.trained import Trained
from shipline.lineage import package_versions
from shipline.store.cache import cache_root

MAX_AGE_S = 24 * 3600.0
MAX_FILES = 2000
#: What a recipe says of which candidates there are, not of how one is measured and judged.
_CHOICES = ("remember", "precision", "backend", "prune", "compiled", "timeout")


class Remembered:
    """Measured points, a small file each, in SHIPLINE_CACHE_DIR or the user's cache directory.

    A point is found again by the digest of the candidate's file and of all that was measured with it: the module's
    weights, rows and answers, the recipe's limits, the versions of the runtimes, the machine. It is forgotten after a
    day, since a machine is not always equally busy. A directory that cannot be used costs the memory, not the search;
    nor is there any where the recipe says so.
    """

    def __init__(self, recipe: Recipe, trained: Trained) -> None:
        self._on = recipe.remember
        self._root = cache_root() / "points"
        self._with = _digest_of_all(recipe, trained)

    def recall(self, candidate: Candidate) -> bool:
        """Give a candidate what was measured of it; return whether there was anything."""
        if not self._on:
            return False
        path = self._path(candidate)
        try:
            if not 0 <= time.time() - path.stat().st_mtime < MAX_AGE_S:
                return False
            known = json.loads(path.read_bytes())
            latencies, against = ([_latency(each) for each in known[name]] for name in ("latencies", "against"))
            verdicts = [Verdict.model_validate(each) for each in known["verdicts"]]
            metrics = {str(name): float(value) for name, value in known["metrics"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or damaged
            return False
        candidate.latencies, candidate.against, candidate.metrics = latencies, against, metrics
        candidate.verdicts, candidate.left_out = verdicts, str(known.get("left_out", ""))
        candidate.recalled = True
        return True

    def keep(self, candidate: Candidate) -> None:
        """Write down what is known of a candidate."""
        if not self._on:
            return
        point = {
            "plan": str(candidate.plan),
            "latencies": [dataclasses.asdict(each) for each in candidate.latencies],
            "against": [dataclasses.asdict(each) for each in candidate.against],
            "metrics": candidate.metrics,
            "verdicts": [verdict.model_dump(mode="json") for verdict in candidate.verdicts],
            "left_out": candidate.left_out,
        }
        path = self._path(candidate)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with FileLock(self._root / ".lock", timeout=10):
                (part := path.with_suffix(".part")).write_text(json.dumps(point))
                part.replace(path)
                self._forget_the_oldest()
        except OSError:  # full, or read-only; a lock that nobody gives back is one, too
            return

    def _path(self, candidate: Candidate) -> Path:
        plan = candidate.plan
        way = f"{self._with} {candidate.digest} {plan} {plan.backend} {plan.serving(candidate.max_batch_size)}"
        return self._root / f"{hashlib.sha256(way.encode()).hexdigest()}.json"

    def _forget_the_oldest(self) -> None:
        points = sorted(self._root.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in points[: max(0, len(points) - MAX_FILES)]:
            path.unlink(missing_ok=True)


def _latency(known: dict[str, Any]) -> Latency:
    return Latency(**{**known, "rounds_ms": tuple(known["rounds_ms"])})


def _digest_of_all(recipe: Recipe, trained: Trained) -> str:
    """The digest of what points depend on besides the candidate's file."""
    digest = hashlib.sha256(digest_of(trained.module.state_dict()).encode())
    for array in (*trained.rows.inputs.values(), *trained.rows.outputs, *trained.usual.values()):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    limits = {name: repr(value) for name, value in vars(recipe).items() if name not in _CHOICES}
    machine = (platform.machine(), platform.processor(), platform.node(), cores())
    digest.update(json.dumps([limits, trained.metrics, machine, package_versions()], sort_keys=True).encode())
    return digest.hexdigest()
