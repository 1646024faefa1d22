"""Results for people: a table, a histogram in the terminal, a plot in a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.table import Table

from shipline.loadtest.results import QUANTILES, RIGHT, Result

BINS = 14
WIDTH = 50


def table(results: Sequence[Result]) -> Table:
    """Return a table with a row for each load."""
    shown = Table("load")
    for name in ("sent", "answers/s", "right/s", *(f"{name} ms" for name in QUANTILES)):
        shown.add_column(name, justify="right")
    shown.add_column("what came")
    for result in results:
        latencies = ["" if value is None else f"{value:.2f}" for value in result.percentiles().values()]
        came = ", ".join(f"{n:,} {name}" for name, n in sorted(result.counts.items(), key=_right_first))
        shown.add_row(
            result.name, f"{result.sent:,}", f"{result.throughput:,.1f}", f"{result.goodput:,.1f}", *latencies, came
        )
    return shown


def histogram(result: Result) -> str:
    """Return bars for the latencies; the bins grow by the same factor each."""
    if not result.latencies:
        return ""
    values = np.asarray(result.latencies) * 1e3
    low, high = max(values.min(), 1e-3), values.max()
    edges = np.geomspace(low, max(high, low * 1.01), BINS + 1)
    counts = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]
    lines = [
        f"{edge:>10.2f} ms {'█' * round(WIDTH * count / counts.max()):<{WIDTH}} {count:,}"
        for edge, count in zip(edges[:-1], counts, strict=True)
    ]
    return "\n".join([f"{result.name}, latencies from", *lines])


def plot(results: Sequence[Result], path: str) -> None:
    """Draw the latency at each quantile, a line for each load, and write it to a file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for result in results:
        if result.latencies:
            values = np.sort(result.latencies) * 1e3
            axes.plot(len(values) / np.arange(len(values), 0, -1), values, label=result.name, drawstyle="steps-pre")
    axes.set(xscale="log", yscale="log", xlabel="quantile", ylabel="latency, ms", title="Latency by quantile")
    axes.set_xticks([1, 2, 10, 100, 1000, 10_000], ["0", "50 %", "90 %", "99 %", "99.9 %", "99.99 %"])
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _right_first(item: tuple[str, int]) -> tuple[bool, str]:
    return item[0] != RIGHT, item[0]
