"""Panels as a page that loads nothing from anywhere."""

from __future__ import annotations

from html import escape

from shipline.runs import RunRecord
from shipline.train.records.plots.curves import Panel
from shipline.train.records.plots.scene import HEIGHT, WIDTH, Line, Scene, Text, draw

_STYLE = """
body { font: 15px system-ui, sans-serif; color: #30343a; margin: 24px; }
main { display: flex; flex-wrap: wrap; gap: 12px; }
svg { width: 480px; max-width: 100%; font: 11px system-ui, sans-serif; }
td { padding: 1px 14px 1px 0; } td:first-child { color: #6d7278; }
"""


def render_page(panels: list[Panel], record: RunRecord, url: str) -> str:
    """Return the page: what became of the run, and its curves."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in _facts(record, url))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(url)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(url)}</h1>\n<table>{rows}</table>\n"
        f"<main>\n{''.join(_panel(panel) for panel in panels)}</main></body></html>\n"
    )


def _facts(record: RunRecord, url: str) -> list[tuple[str, str]]:
    facts = [("run", url), ("module", record.module), ("state", str(record.state)), ("error", record.error or "")]
    if record.started_at is not None:
        facts.append(("started", f"{record.started_at:%Y-%m-%d %H:%M} UTC"))
    facts += [("trained for", f"{record.epochs} epochs, {record.steps} steps, {record.seconds:.0f} s")]
    facts += [(name, f"{value:.6g}" if value is not None else "not finite") for name, value in record.metrics.items()]
    return [(name, text) for name, text in facts if text]


def _panel(panel: Panel) -> str:
    scene: Scene = draw(panel)
    shapes = [*map(_line, scene.lines), *map(_text, scene.texts)]
    names = ", ".join(curve.name for curve in panel.curves)
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img"><title>{escape(names)}</title>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def _line(line: Line) -> str:
    if len(line.points) == 1:
        [(x, y)] = line.points
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{line.color}"/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line.points)
    return f'<polyline points="{points}" fill="none" stroke="{line.color}" stroke-width="{line.width:g}"/>'


def _text(text: Text) -> str:
    x, y = text.at
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{text.color}" font-size="{text.size}" text-anchor="{text.anchor}">'
        f"{escape(text.text)}</text>"
    )
