"""Export a checkpoint again and again, and be killed each time at another phase.

    python export_killed.py CHECKPOINT ROOT PHASE ...

One process imports everything; each phase dies in a fork of it, on its way to ROOT/<number of the phase>/m. Prints how
each fork ended: the signal's number, negative, or its exit code.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import torch
from small_modules import Digits, Tiny

import shipline as sl
from shipline.artifact import Model, open_model
from shipline.checkpoint import open_checkpoint
from shipline.compose import evaluator
from shipline.export import Source, exporter, gates, source as sources
from shipline.export.convert import onnx as conversion
from shipline.export.passes import static_int8
from shipline.export.proof import Proof
from shipline.store import Publication

PROVING: dict[str, tuple[Any, str]] = {
    "rebuild": (sources, "check_finite"),
    "convert": (conversion, "to_onnx"),
    "quantise": (static_int8, "quantize_static"),
    "prove": (gates, "batch_invariance"),
    "report": (exporter.report, "describe"),
}
FILES = ("model.onnx", "golden.json", "golden.safetensors", "report.json", "report.html")  # die once it is written
COMMITTING: dict[str, tuple[Any, str]] = {
    "before the manifest": (Publication, "commit"),
    "before the pointer": (Model, "point"),
}

exporting = 0  # the process

LAX = sl.Recipe(precision="int8", tolerance=1.0, max_metric_drop=1.0, min_speedup=0.0)


def die(*_: Any, **__: Any) -> None:
    """Kill the process that exports, from wherever it has got to."""
    os.kill(exporting, signal.SIGKILL)
    signal.pause()  # in a process of its own, which ends with that one


def die_at(phase: str) -> None:
    """Kill this process as soon as it gets to the phase."""
    if phase not in FILES:
        owner, name = (PROVING | COMMITTING)[phase]
        setattr(owner, name, die)
        return
    add = Publication.add

    def added(publication: Publication, name: str, data: Any) -> Any:
        entry = add(publication, name, data)
        return die() if name == phase else entry

    Publication.add = added  # type: ignore[method-assign]


def source_of(checkpoint: str) -> Source:
    return Source.of_checkpoint(open_checkpoint(checkpoint), Tiny, evaluator(Digits()))


def prove(source: Source) -> Proof:
    return exporter.prove(source, LAX)


def publish(source: Source, proved: Proof | None, url: str) -> None:
    """Export; without proving, where that was done."""
    if proved is not None:
        exporter.prove = lambda *_: proved
    exporter.export(source, LAX, open_model(url))


def forked(source: Source, proved: Proof, url: str, phase: str) -> int:
    """Return the id of a process that exports and dies."""
    global exporting
    if pid := os.fork():
        return pid
    exporting = os.getpid()
    try:
        die_at(phase)
        publish(source, None if phase in PROVING else proved, url)
    except BaseException as error:
        print(f"{phase}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    checkpoint, root, *phases = sys.argv[1:]
    torch.set_num_threads(1)  # forks must not miss threads that they were not given
    source = source_of(checkpoint)
    proved = prove(source)
    children = [forked(source, proved, f"{root}/{number}/m", phase) for number, phase in enumerate(phases)]
    for pid in children:
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
