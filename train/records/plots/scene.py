"""Where each line and word of a panel goes; how they are drawn is up to the format."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from shipline.train.records.plots.curves import Curve, Panel

WIDTH, HEIGHT = 480.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, WIDTH - 14.0, 52.0, HEIGHT - 30.0
COLORS = ("#1f6fb4", "#e07b1a", "#2a9a4a", "#c23b3b", "#8455b5", "#7a5a46", "#d565a8", "#6d7278")
INK, GRID = "#30343a", "#dde1e6"
_LETTER = 6.1  # width of a letter at size 11, about
_NOTHING, _MOST = 1e-300, 1.7e308  # what floats are too coarse for, and about the greatest

XY = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line through points; a dot where there is only one."""

    points: list[XY]
    color: str
    width: float


@dataclass(frozen=True)
class Text:
    """A word, beginning, centred or ending at a point of its base line."""

    at: XY
    text: str
    color: str = INK
    size: int = 11
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass
class Scene:
    """What is to be drawn on WIDTH by HEIGHT, from the top left corner."""

    lines: list[Line] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def draw(panel: Panel) -> Scene:
    """Return the panel as lines and words."""
    scene = Scene(texts=[Text((_LEFT, 20), cut(panel.title, 60), size=14)])
    steps = [float(step) for curve in panel.curves for step, value in curve.points if math.isfinite(value)]
    values = [value for curve in panel.curves for _, value in curve.points if math.isfinite(value)]
    _legend(scene, panel)
    if not values:
        scene.texts.append(Text((WIDTH / 2, HEIGHT / 2), "no value is finite", anchor="middle"))
        return scene
    x, y = Axis(*_widened(steps, 0.0), _LEFT, _RIGHT), Axis(*_widened(values, 0.05), _BOTTOM, _TOP)
    _grid(scene, x, y)
    for curve, color in zip(panel.curves, _colors(len(panel.curves)), strict=True):
        scene.lines += [Line([(x.place(s), y.place(v)) for s, v in part], color, 1.6) for part in _unbroken(curve)]
    return scene


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` stand from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Return where the value stands."""
        # Halves, for the difference of two floats may be more than a float can be.
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values between `low` and `high`: 1, 2 or 5 times a power of ten apart."""
        raw = (self.high / most) - (self.low / most)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next((factor * power for factor in (1, 2, 5) if factor * power >= raw), 10 * power)
        first = math.ceil(self.low / step)
        found = [(first + index) * step for index in range(most + 2)]
        return [value for value in found if value <= self.high]


def cut(text: str, most: int) -> str:
    """Return the text, or as much of it as there is room for."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _legend(scene: Scene, panel: Panel) -> None:
    room = int((_RIGHT - _LEFT) / len(panel.curves) / _LETTER) - 3
    at = _LEFT
    for curve, color in zip(panel.curves, _colors(len(panel.curves)), strict=True):
        text = cut(curve.name, max(room, 6))
        if at + len(text) * _LETTER > WIDTH:
            break  # more curves than there is room for: metrics.csv names them
        scene.lines.append(Line([(at, 36), (at + 12, 36)], color, 3))
        scene.texts.append(Text((at + 16, 40), text))
        at += 30 + len(text) * _LETTER


def _grid(scene: Scene, x: Axis, y: Axis) -> None:
    for value in y.ticks():
        scene.lines.append(Line([(_LEFT, y.place(value)), (_RIGHT, y.place(value))], GRID, 1))
        scene.texts.append(Text((_LEFT - 6, y.place(value) + 4), f"{value:.4g}", anchor="end"))
    for value in x.ticks():
        if value == int(value):  # steps are whole
            scene.texts.append(Text((x.place(value), _BOTTOM + 16), f"{value:.6g}", anchor="middle"))
    scene.lines.append(Line([(_LEFT, _TOP), (_LEFT, _BOTTOM), (_RIGHT, _BOTTOM)], INK, 1))
    scene.texts.append(Text((_RIGHT, HEIGHT - 2), "step", anchor="end"))


def _widened(values: list[float], share: float) -> tuple[float, float]:
    """The least and greatest value with some room around them: never the same, and never infinite."""
    low, high = min(values), max(values)
    if high - low < _NOTHING:
        room = abs(low) / 2 if abs(low) > _NOTHING else 1.0
        return max(low - room, -_MOST), min(high + room, _MOST)
    room = (high / 2 - low / 2) * 2 * share
    return max(low - room, -_MOST), min(high + room, _MOST)


def _unbroken(curve: Curve) -> list[list[tuple[int, float]]]:
    """The stretches of a curve between values that are not finite."""
    parts: list[list[tuple[int, float]]] = [[]]
    for point in curve.points:
        if math.isfinite(point[1]):
            parts[-1].append(point)
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]
