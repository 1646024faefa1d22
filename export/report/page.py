"""The report's HTML page: its tables from a template, its plots as SVG inside it."""

from __future__ import annotations

import base64
import io
import re
import threading
import warnings
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, PLAIN, FRONT, CHOSEN = "#1b2733", "#dde4ea", "#74c0cc", "#0b7285"

MOST_NODES, MOST_CLASSES = 30, 30

#: PNGs by a row's number and the name of what is shown of it.
Pictures = Mapping[tuple[int, str], bytes]

_DRAWING = threading.Lock()  # matplotlib's settings are those of the process


def render(content: dict[str, Any], pictures: Pictures) -> bytes:
    """Return the page for a report; every text in it is escaped."""
    template = resources.files("shipline.export.report").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    plots = [_svg(_latency_plot(content)), _svg(_trade_plot(content))]
    chosen = next(candidate for candidate in content["candidates"] if candidate["chosen"])
    swept = [each for each in content["candidates"] if "sensitivity" in each["notes"]]
    sensitivity = _svg(_sensitivity_plot(swept[0])) if swept else None
    page = environment.from_string(template).render(
        **content,
        plots=plots,
        sensitivity=sensitivity,
        chosen=chosen,
        worst_classes=sorted(chosen["classes"], key=lambda each: (-each["drop"], -each["rows"]))[:MOST_CLASSES],
        least=[_least_agreed(each) for each in chosen["agreement"]],
        pictures={place: base64.b64encode(picture).decode() for place, picture in pictures.items()},
    )
    return page.encode()


def _least_agreed(agreement: dict[str, Any]) -> list[dict[str, Any]]:
    """The classes that are answered otherwise most often, at first; of those that agree, the ones of many rows."""
    classes = sorted(agreement["classes"], key=lambda each: (each["agreed"] / each["rows"], -each["rows"]))
    return classes[:MOST_CLASSES]


def _latency_plot(content: dict[str, Any]) -> Figure:
    """How the rounds of each candidate were distributed, at each batch size."""
    batches = [taken["batch"] for taken in content["candidates"][0]["latency"]]
    figure = Figure(figsize=(8, (0.7 + 0.35 * len(content["candidates"])) * len(batches)), layout="constrained")
    for axes, i in zip(figure.subplots(len(batches), squeeze=False)[:, 0], range(len(batches)), strict=True):
        rounds = [candidate["latency"][i]["rounds_ms"] for candidate in content["candidates"]]
        boxes = axes.boxplot(rounds, orientation="horizontal", widths=0.6, patch_artist=True, showfliers=False)
        for box, colour in zip(boxes["boxes"], _colours(content), strict=True):
            box.set(facecolor=colour, edgecolor=INK)
        for line in boxes["medians"]:
            line.set(color=INK)
        axes.set_yticks(range(1, len(rounds) + 1), [candidate["name"] for candidate in content["candidates"]])
        axes.set_xlabel(f"ms for a batch of {batches[i]}")
        axes.set_xlim(left=0)
        _clean(axes)
    return figure


def _trade_plot(content: dict[str, Any]) -> Figure:
    """The metric against throughput and size, for each candidate whose metric was measured."""
    name = content["metric"]["name"]
    shown = [
        (candidate, colour)
        for candidate, colour in zip(content["candidates"], _colours(content), strict=True)
        if name in candidate["metrics"]
    ]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    places = (("rows a second, in the largest batches", _rows_a_second), ("size, MB", _megabytes))
    for axes, (label, place) in zip(figure.subplots(1, 2, sharey=True), places, strict=True):
        for candidate, colour in shown:
            at = (place(candidate), candidate["metrics"][name])
            axes.scatter(*at, s=70, color=colour, edgecolor=INK, zorder=3)
            text = candidate["name"].replace(" on ", "\non ")
            axes.annotate(
                text, at, xytext=(0, 7), textcoords="offset points", ha="center", va="bottom", color=INK, fontsize=8
            )
        axes.axhline(
            content["trained"]["metrics"][name], color=INK, linewidth=1, linestyle="--", label="trained module"
        )
        axes.set_xlabel(label)
        axes.margins(x=0.3, y=0.4)
        _clean(axes)
    figure.axes[0].set_ylabel(name, parse_math=False)
    figure.axes[0].legend(frameon=False, loc="lower right")
    return figure


def _sensitivity_plot(candidate: dict[str, Any]) -> Figure:
    """What the answers lose where each node alone has 8 bits; those that suffer most."""
    worst = candidate["notes"]["sensitivity"][:MOST_NODES]
    figure = Figure(figsize=(8, 0.7 + 0.25 * len(worst)), layout="constrained")
    axes = figure.subplots()
    colours = [PLAIN if each["float"] else CHOSEN for each in worst]
    axes.barh(range(len(worst)), [each["error"] for each in worst], color=colours, edgecolor=INK)
    axes.set_yticks(range(len(worst)), [each["node"] for each in worst], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("error of the answers, in parts of their length; what is pale stays float")
    _clean(axes)
    return figure


def _rows_a_second(candidate: dict[str, Any]) -> float:
    largest = candidate["latency"][-1]
    return float(largest["batch"] / largest["median_ms"] * 1e3)


def _megabytes(candidate: dict[str, Any]) -> float:
    return float(candidate["bytes"] / 1e6)


def _colours(content: dict[str, Any]) -> list[str]:
    return [CHOSEN if each["chosen"] else FRONT if each["on_front"] else PLAIN for each in content["candidates"]]


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6ebf0")
    axes.set_axisbelow(True)


def _svg(figure: Figure) -> Markup:
    file = io.StringIO()
    # Without a date and with fixed ids, the same measurements give the same page. Text stays text, which the browser
    # can show in any script; matplotlib only measures it, and would warn of letters that its own font lacks.
    with _DRAWING, rc_context({"svg.hashsalt": "shipline", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(re.sub(r"^.*?(?=<svg)", "", file.getvalue(), count=1, flags=re.DOTALL))  # noqa: S704 -- our own plot
