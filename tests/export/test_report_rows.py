"""Rows as the report shows them: pictures, texts, tables and numbers, of what a module and its clients are given."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import Base
from sklearn.datasets import load_digits
from small_modules import CellTable
from torch import nn

import shipline as sl
from shipline.artifact import Artifact
from shipline.export.report import rows
from shipline.export.report.rows import Shown, show_input, show_raw
from shipline.processing import Columns, DecodeImage, Grayscale, Labels, Layout, Normalize, Processing, Softmax, Step
from shipline.train import Run

RAMP = np.linspace(-2, 2, 48, dtype=np.float32)


def pixels(shown: Shown) -> np.ndarray:
    """The picture that a browser shows."""
    assert shown.picture is not None
    return np.asarray(Image.open(io.BytesIO(shown.picture), formats=["PNG"]))


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.mark.parametrize(
    ("shape", "size"),
    [((6, 8), (6, 8)), ((1, 6, 8), (6, 8)), ((6, 8, 1), (6, 8)), ((3, 4, 4), (4, 4, 3)), ((4, 4, 3), (4, 4, 3))],
)
def test_an_input_with_height_and_width_is_a_picture(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    shown = show_input("x", RAMP.reshape(shape))
    found = pixels(shown)
    assert found.shape == size
    assert (found.min(), found.max()) == (0, 255)
    assert (shown.name, shown.text) == ("x", f"{list(shape)}, from -2 to 2")


def test_a_channel_is_a_colour() -> None:
    red = np.zeros((3, 5, 5), np.float32)
    red[0] = 1
    np.testing.assert_array_equal(pixels(show_input("x", red)), np.tile(np.uint8([255, 0, 0]), (5, 5, 1)))


@pytest.mark.parametrize("row", [np.zeros((4, 4), np.float32), np.ones((4, 4), bool), np.full((1, 4, 4), 7, np.int64)])
def test_a_picture_of_one_value_is_one(row: np.ndarray) -> None:
    assert not pixels(show_input("x", row)).any()


def test_a_large_picture_is_made_small() -> None:
    shown = show_input("x", np.zeros((1, 2000, 1000), np.float32))
    assert pixels(shown).shape == (rows.SIDE, rows.SIDE // 2)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (np.int64([101, 7592, 102, 0]), "101, 7592, 102, 0"),
        (np.float32([0.1, 2 / 3]), "0.1, 0.6667"),
        (np.float32([np.nan, -np.inf]), "nan, -inf"),
        (np.array([True, False]), "True, False"),
        (np.float32(3), "3"),
        (np.arange(30), ", ".join(map(str, range(24))) + ", … (30 numbers)"),
        (np.zeros((3, 200), np.float32), ", ".join("0" * 24) + ", … (600 numbers)"),  # too low for a picture
        (np.zeros((2, 5, 5), np.int64), ", ".join("0" * 24) + ", … (50 numbers)"),
        (np.full((4, 4), np.nan, np.float32), ", ".join(["nan"] * 16)),
    ],
)
def test_other_inputs_are_numbers(row: np.ndarray, text: str) -> None:
    assert show_input("x", row) == Shown("x", text)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_raw_picture_is_shown_by_a_png_of_its_pixels(kind: str) -> None:
    raw = encoded(Image.new("RGB", (400, 200), (200, 0, 0)), kind)
    shown = show_raw("raw row 3", raw)
    assert shown.text == f"{len(raw):,} bytes, 400x200 pixels"
    found = pixels(shown)
    assert found.shape == (rows.SIDE // 2, rows.SIDE, 3)
    np.testing.assert_allclose(found[0, 0], (200, 0, 0), atol=3)


def test_a_picture_keeps_nothing_but_its_pixels() -> None:
    exif = Image.Exif()
    exif[Base.Artist] = "somebody"
    raw = encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif)
    assert b"somebody" in raw
    assert b"somebody" not in (show_raw("raw", raw).picture or b"")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"\x89PNG\r\n\x1a\nno more", Shown("raw", "15 bytes")),
        (b"RIFF" + bytes(2000), Shown("raw", "2,004 bytes")),
        ("a <b>text</b>", Shown("raw", "a <b>text</b>")),
        ("x" * 1000, Shown("raw", "x" * 600 + "… (1,000 characters)")),
        ([1.5, 2], Shown("raw", "[1.5, 2]")),
        (np.float32([1.5]), Shown("raw", "1.5")),
        ({"age": 3, "scan": b"12"}, Shown("raw", "", {"age": "3", "scan": "2 bytes"})),
        ({"note": "y" * 99}, Shown("raw", "", {"note": "y" * 80 + "… (99 characters)"})),
        ({i: i for i in range(50)}, Shown("raw", "40 of 50 columns", {str(i): str(i) for i in range(40)})),
    ],
)
def test_other_raw_rows_are_text_and_tables(raw: Any, shown: Shown) -> None:
    assert show_raw("raw", raw) == shown


# ---- in reports ------------------------------------------------------------------------------------------------------


def report_of(artifact: Artifact) -> tuple[dict[str, Any], str]:
    """The report as data, and the part of its page that shows rows."""
    page = artifact.read("report.html").decode()
    return json.loads(artifact.read("report.json")), page.partition("Rows that differ most")[2].partition("<h2>")[0]


def exported(tmp_path: Path, given: Any, *before: Step) -> Artifact:
    """An untrained network for the scans, with an int8 graph, which is sure to answer otherwise."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    after = [Softmax(), Labels(names=[f"<{i}>" for i in range(10)])]
    recipe = sl.Recipe(precision="int8", min_speedup=0, max_metric_drop=1, tolerance=1, proof_rows=32)
    processing = Processing(before, after) if before else None
    return sl.export(net, recipe, rows=given, processing=processing, to=str(tmp_path / "m"))


def test_pictures_that_clients_send_are_in_the_page(tmp_path: Path) -> None:
    scans = (load_digits().images[:64] * 15).astype(np.uint8)
    pngs = [encoded(Image.fromarray(scan)) for scan in scans]
    content, shown = report_of(
        exported(tmp_path, pngs, DecodeImage(), Grayscale(), Normalize(mean=(0.5,), std=(0.5,)), Layout())
    )
    worst = content["worst_rows"]
    assert len(worst) == 5
    assert [each["shown"][0]["name"] for each in worst] == [f"raw row {each['row']}" for each in worst]
    images = re.findall(r'<img src="data:image/png;base64,([^"]+)"', shown)
    for each, image in zip(worst, images, strict=True):
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("L"))
        np.testing.assert_array_equal(found, scans[each["row"]])
        assert each["shown"][0]["text"] == f"{len(pngs[each['row']])} bytes, 8x8 pixels"
        assert re.fullmatch(r"<\d>: [-\d.]+, <\d>: [-\d.]+, <\d>: [-\d.]+, …", each["found"])
    assert "&lt;" in shown
    assert not re.search(r"<\d>", shown)
    assert sum(each["rows"] for each in content["candidates"][1]["agreement"][0]["classes"]) == 32


def test_pictures_that_forward_is_given_are_in_the_page(tmp_path: Path) -> None:
    scans = torch.tensor(load_digits().images[:64, None] / 16, dtype=torch.float32)
    content, shown = report_of(exported(tmp_path, scans))
    assert [each["shown"][0]["name"] for each in content["worst_rows"]] == ["input"] * 5
    assert content["worst_rows"][0]["shown"][0]["text"].startswith("[1, 8, 8], from 0 to ")
    assert shown.count('<img src="data:image/png;base64,') == 5
    assert "base64" not in json.dumps(content)


def test_rows_of_a_table_are_tables(trained_cells: Run, tmp_path: Path) -> None:
    data = CellTable()
    artifact = sl.export(trained_cells, "float32", to=str(tmp_path / "cells"), data=data)
    content, shown = report_of(artifact)
    data.setup("fit")
    for each in content["worst_rows"]:
        [part] = each["shown"]
        assert part["name"] == f"raw row {each['row']}"
        assert part["columns"] == {name: str(value) for name, value in data.raw[each["row"]].items()}
        assert shown.count(f"<td>{part['columns']['mean radius']}</td>") >= 1
    assert {each["name"] for each in content["candidates"][0]["agreement"][0]["classes"]} == {"malignant", "benign"}


def test_a_row_whose_raw_form_is_not_known_is_shown_as_forward_is_given_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shipline.export.golden.RAW_ROWS", 1)
    table = [{str(i): float(value) for i, value in enumerate(scan)} for scan in load_digits().data[:64]]
    artifact = exported(tmp_path, table, Columns(numeric=tuple(map(str, range(64)))))
    names = {each["row"]: each["shown"][0]["name"] for each in report_of(artifact)[0]["worst_rows"]}
    assert names == {row: "raw row 0" if row == 0 else "input" for row in names}
