"""Rows as people see them: pictures, texts, tables and numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from shipline.errors import ProcessingError
from shipline.processing.image import MAX_PIXELS, DecodeImage

#: Of what is shown: characters of a text and of a cell, cells of a table, numbers of a tensor, pixels of a side.
TEXT, CELL, CELLS, NUMBERS, SIDE = 600, 80, 40, 24, 192
SMALLEST_SIDE = 4


@dataclass(frozen=True)
class Shown:
    """One input of a row, or the raw row.

    Args:
        name: what it is.
        text: what it holds, or what it is a picture of.
        columns: for a row of a table, its cells.
        picture: a PNG, where it is one.
    """

    name: str
    text: str
    columns: dict[str, str] = field(default_factory=dict)
    picture: bytes | None = None


def show_raw(name: str, raw: Any) -> Shown:
    """Return a raw row as people see it."""
    if isinstance(raw, bytes):
        return _file(name, raw)
    if isinstance(raw, np.ndarray):
        return show_input(name, raw)
    if isinstance(raw, Mapping):
        cells = {_cut(str(key), CELL): _cell(value) for key, value in list(raw.items())[:CELLS]}
        return Shown(name, f"{CELLS} of {len(raw)} columns" if len(raw) > CELLS else "", cells)
    return Shown(name, _cut(raw if isinstance(raw, str) else repr(raw), TEXT))


def show_input(name: str, row: np.ndarray) -> Shown:
    """Return one row of a forward's input, without its batch dimension, as people see it."""
    pixels = _pixels(row)
    if pixels is not None:
        text = f"{list(row.shape)}, from {row.min():.4g} to {row.max():.4g}"
        return Shown(name, text, picture=_png(pixels))
    text = ", ".join(f"{number:.4g}" if row.dtype.kind == "f" else str(number) for number in row.ravel()[:NUMBERS])
    return Shown(name, text if row.size <= NUMBERS else f"{text}, … ({row.size:,} numbers)")


def _file(name: str, raw: bytes) -> Shown:
    """A picture is decoded and made anew, small: a file may hold more than its picture, such as where it was taken."""
    text = f"{len(raw):,} bytes"
    try:
        pixels = DecodeImage(max_pixels=MAX_PIXELS)(raw)
    except ProcessingError:
        return Shown(name, text)
    return Shown(name, f"{text}, {pixels.shape[1]}x{pixels.shape[0]} pixels", picture=_png(pixels))


def _pixels(row: np.ndarray) -> np.ndarray | None:
    """Return [H, W], [1, H, W], [3, H, W] or the last two with channels last as uint8; None where it is no picture."""
    if row.ndim == 3 and row.shape[0] in (1, 3):
        row = row.transpose(1, 2, 0)
    if row.ndim == 3 and row.shape[2] == 1:
        row = row[:, :, 0]
    if (row.ndim, *row.shape[2:]) not in ((2,), (3, 3)) or min(row.shape[:2]) < SMALLEST_SIDE:
        return None
    values = row.astype(np.float64)
    if not np.isfinite(values).all():
        return None
    low, high = values.min(), values.max()
    return np.asarray((values - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(file, format="PNG")
    return file.getvalue()


def _cell(value: Any) -> str:
    return f"{len(value):,} bytes" if isinstance(value, bytes) else _cut(str(value), CELL)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
