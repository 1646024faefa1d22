"""Which curves belong together: train_loss and val_loss share a panel."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from shipline.runs import Points

MOST_POINTS = 600
_STAGE = r"(?:training|train|validation|valid|val|test)"
_AROUND = re.compile(rf"^{_STAGE}[_/. -]|[_/. -]{_STAGE}$", re.IGNORECASE)
_END = re.compile(r"(?:_step|_epoch)?(?:/dataloader_idx_\d+)?(?:_step|_epoch)?$")
_ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class Curve:
    """A metric over the steps."""

    name: str
    points: Points


@dataclass(frozen=True)
class Panel:
    """Curves of one quantity."""

    title: str
    curves: list[Curve]


def make_panels(history: dict[str, Points]) -> list[Panel]:
    """Return the panels of all metrics; what was measured in training comes first in each."""
    groups: dict[str, list[Curve]] = {}
    for name in sorted(set(history) - {"epoch"}, key=_rank):
        groups.setdefault(quantity(name), []).append(Curve(name, thinned(history[name])))
    return [Panel(title, groups[title]) for title in sorted(groups)]


def quantity(name: str) -> str:
    """Return what a metric measures: "loss" for train_loss, val/loss, loss_epoch."""
    base = _AROUND.sub("", _END.sub("", name))
    return base or name


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Return few enough points to draw: of each stretch the least and the greatest, so that no spike is lost."""
    if len(points) <= most:
        return points
    length = math.ceil(len(points) / (most // 2))
    kept: Points = []
    for start in range(0, len(points), length):
        part = points[start : start + length]
        finite = [point for point in part if math.isfinite(point[1])] or part
        ends = {min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    return kept


def _rank(name: str) -> tuple[int, str]:
    stage = next((index for index, word in enumerate(_ORDER) if word in name.lower()), len(_ORDER))
    return stage, name
