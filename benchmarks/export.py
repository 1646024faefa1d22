"""What `--auto` finds beside other tools: how good, how large and how fast.

    python benchmarks/export.py [--models table digits scans minilm photographs] [--peers FOLDER] [--plot FILE]

Each model is exported as float32, which all else is compared with, and by the search with a budget of 0.5 %; those that
can be trained on also by the search with pruning, and with throughput as its objective. With
`--peers`, other tools make their files of the same float32 graph and of the same rows; they are installed into FOLDER,
in the versions of benchmarks/peers/requirements.txt, over what is in .venv. Then one process opens all files of a model
in the same runtimes, with one thread each, and times them in turn. A tool that fails is a row of the table, too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import matplotlib as mpl
import numpy as np
from export_models import MODELS, Model
from export_peers import install, make, pinned
from export_timing import Made, side_by_side

import shipline as sl

FLOAT32 = "float32 on onnxruntime"
BATCHES = (1, 32)


@dataclass(frozen=True)
class Measured:
    """A row of the table; with a reason, where there is no file."""

    model: str
    metric: str
    name: str
    score: float = 0.0
    size: int = 0
    ms: tuple[float, ...] = ()
    times: tuple[float, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"| {self.model} | {self.name} | failed: {self.reason} | | | |"
        taken = [f"{ms:.3f} ({times:.2f}x)" for ms, times in zip(self.ms, self.times, strict=True)]
        return f"| {self.model} | {self.name} | {self.metric} {self.score:.4f} | {self.size:,} | {' | '.join(taken)} |"


def of_shipline(model: Model, folder: Path) -> list[Made]:
    """Export the float32 graph, and what the searches find."""
    plain = model.export(sl.Recipe(), str(folder / "models/plain"))
    (folder / "float32.onnx").write_bytes(plain.read("model.onnx"))
    np.savez(folder / "calibration.npz", **model.calibration)
    made = [Made(FLOAT32, folder / "float32.onnx", "onnxruntime")]
    recipe = sl.Recipe(precision="auto", max_metric_drop="0.5%")
    made.append(searched("auto", model, recipe, folder))
    if model.trainable:
        pruned = replace(recipe, prune="auto", objective="throughput")
        made.append(searched("auto, pruned", model, pruned, folder))
    return made


def searched(name: str, model: Model, recipe: sl.Recipe, folder: Path) -> Made:
    """Export what a search finds."""
    began = time.perf_counter()
    found = model.export(recipe, str(folder / "models/found"))
    print(f"{model.name}: {name} took {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    file = folder / f"{name}.onnx"
    file.write_bytes(found.read("model.onnx"))
    [chosen] = [each["name"] for each in json.loads(found.read("report.json"))["candidates"] if each["chosen"]]
    compute = "bf16" if found.manifest.serving.compute == "bfloat16" else "f32"
    return Made(f"**shipline {name}**: {chosen}", file, found.manifest.backend, compute)


def of_peers(model: Model, folder: Path, packages: Path) -> tuple[list[Made], list[Measured]]:
    """Let each peer make its files; what failed comes back as rows."""
    graph = folder / "float32.onnx"
    made = [Made(f"OpenVINO {kind}", graph, "openvino", hint) for kind, hint in (("float32", "f32"), ("bf16", "bf16"))]
    failed = []
    for name, versions in pinned().items():
        reason = install(name, packages / name)
        files, reasons = {}, {"all": reason}
        if not reason:
            files, reasons = make(name, packages / name, folder, transformer=model.transformer)
        for way, file in sorted(files.items()):
            runtime = "openvino" if file.suffix == ".xml" else "onnxruntime"
            made.append(Made(f"{versions[0]} {way}", file, runtime))
        failed += [
            Measured(model.name, model.metric, f"{versions[0]} {way}", reason=why) for way, why in reasons.items()
        ]
    return made, failed


def measured(model: Model, made: list[Made]) -> list[Measured]:
    """Open all files of a model, ask each all rows, and time them in turn."""
    opened, rows = {}, []
    for each in made:
        row = Measured(model.name, model.metric, each.name, size=each.size)
        try:
            opened[each.name] = each.open()
            row = replace(row, score=model.score(opened[each.name].answers(model.rows)))
        except Exception as error:  # whatever a runtime says of a peer's file
            opened.pop(each.name, None)
            row = replace(row, reason=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        rows.append(row)
    taken = [side_by_side(opened, model.rows, batch) for batch in BATCHES]
    return [
        replace(
            row, ms=tuple(each[row.name] for each in taken),
            times=tuple(each[FLOAT32] / each[row.name] for each in taken),
        )
        if row.name in opened else row for row in rows
    ]  # fmt: skip


def plot(rows: list[Measured], file: str) -> None:
    """Draw, for each model, what is lost against how many times as fast it is (batches of 1 and 32 alike)."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row.model for row in rows))
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 6), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        found = [row for row in rows if row.model == name and row.times]
        points = [(float(np.prod(row.times)) ** 0.5, row.score, row.name.replace("*", "")) for row in found]
        front = sorted(p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points))
        axis.plot([p[0] for p in front], [p[1] for p in front], color="0.7", zorder=0)
        for i, (speed, score, label) in enumerate(points):
            marker, size = ("*", 120) if label.startswith("shipline") else ("o", 30)
            axis.scatter([speed], [score], color=plt.colormaps["tab20"](i % 20), marker=marker, s=size, label=label)
        axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.15))
        axis.set(title=name, xlabel="times as fast as float32 onnxruntime", ylabel=found[0].metric)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def compared(model: Model, folder: Path, packages: Path | None) -> list[Measured]:
    """All rows of one model."""
    made, failed = of_shipline(model, folder), []
    if packages is not None:
        others, failed = of_peers(model, folder, packages)
        made += others
    gc.collect()
    return measured(model, made) + failed


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="run other tools, too; they are installed there")
    parser.add_argument("--plot", metavar="FILE", help="draw the fronts (PNG, SVG)")
    options = parser.parse_args()
    rows: list[Any] = []
    print("| model | way | metric | bytes | ms, 1 row | ms, 32 rows |\n|---|---|---|---|---|---|", flush=True)
    for name in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            found = compared(MODELS[name](Path(scratch)), Path(scratch), options.peers)
        print(*found, sep="\n", flush=True)
        rows += found
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
