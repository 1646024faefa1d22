"""The curves of a run, as a picture and as a page that needs nothing but a browser."""

from __future__ import annotations

from shipline.errors import NotFoundError
from shipline.runs import METRICS_FILE, RunRecord, parse_metrics
from shipline.store import Store
from shipline.train.records.plots.curves import make_panels
from shipline.train.records.plots.page import render_page
from shipline.train.records.plots.png import render_png

PNG_FILE = "plots/learning_curves.png"
HTML_FILE = "plots/learning_curves.html"

__all__ = ["HTML_FILE", "PNG_FILE", "write_plots"]


def write_plots(store: Store, record: RunRecord) -> None:
    """Write the curves of the run's `metrics.csv`; nothing where no metric has two values."""
    try:
        panels = make_panels(parse_metrics(store.read(METRICS_FILE)))
    except NotFoundError:
        return
    if any(len(curve.points) > 1 for panel in panels for curve in panel.curves):
        store.write(PNG_FILE, render_png(panels))
        store.write(HTML_FILE, render_page(panels, record, str(store)).encode())
