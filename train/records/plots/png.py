"""Panels as a picture. Pillow draws it: a plotting library would cost the run a second at its end."""

from __future__ import annotations

import io
import math
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from shipline.train.records.plots.curves import Panel
from shipline.train.records.plots.scene import HEIGHT, WIDTH, Scene, draw

SCALE = 1.5  # pixels for a unit of the scene
SMOOTH = 2  # each is the mean of so many squared
COLUMNS = 2
MOST_PANELS = 60
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def render_png(panels: list[Panel]) -> bytes:
    """Return the panels, two beside each other, as a PNG file; of very many the first."""
    panels = panels[:MOST_PANELS]
    columns = min(COLUMNS, len(panels))
    width, height = int(WIDTH * SCALE), int(HEIGHT * SCALE)
    picture = Image.new("RGB", (width * columns, height * math.ceil(len(panels) / columns)), "white")
    for index, panel in enumerate(panels):
        picture.paste(_drawn(draw(panel)), (width * (index % columns), height * (index // columns)))
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _drawn(scene: Scene) -> Image.Image:
    scale = int(SCALE * SMOOTH)
    image = Image.new("RGB", (int(WIDTH * scale), int(HEIGHT * scale)), "white")
    canvas = ImageDraw.Draw(image)
    for line in scene.lines:
        points = [(x * scale, y * scale) for x, y in line.points]
        if len(points) == 1:
            canvas.circle(points[0], 2 * scale, fill=line.color)
        else:
            canvas.line(points, fill=line.color, width=max(1, round(line.width * scale)), joint="curve")
    fonts: dict[int, Any] = {}
    for text in scene.texts:
        font = fonts.setdefault(text.size, ImageFont.load_default(text.size * scale))
        at = (text.at[0] * scale, text.at[1] * scale)
        canvas.text(at, text.text, fill=text.color, font=font, anchor=_ANCHORS[text.anchor])
    return image.reduce(SMOOTH)
