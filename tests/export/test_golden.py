"""Golden rows: real validation rows with the trained module's answers, by which servers check themselves."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from small_modules import CellTable, record
from torch import nn

import shipline as sl
from shipline.artifact import GOLDEN, GOLDEN_TENSORS
from shipline.errors import ProcessingError, SignatureError
from shipline.export import golden
from shipline.export.golden import from_raw, from_rows, raw_of, spread
from shipline.export.signature import signature_of
from shipline.processing import Columns, Labels, Processing, Softmax
from shipline.train import Run

COLUMNS = Processing(before=[Columns(numeric=("a", "b"))], after=[Softmax(), Labels(names=("no", "yes"))])


class Line(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x * 2


class Two(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        return {"sum": x + y, "difference": x - y}


def table(count: int) -> list[dict[str, float]]:
    return [{"a": float(i), "b": -float(i)} for i in range(count)]


def prepared(rows: Iterable[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([COLUMNS.prepare(row) for row in rows]))


@pytest.mark.parametrize(
    ("rows", "count", "chosen"), [(10, 3, [0, 4, 9]), (3, 8, [0, 1, 2]), (1, 8, [0]), (5, 1, [0]), (100, 2, [0, 99])]
)
def test_golden_rows_are_spread_evenly(rows: int, count: int, chosen: list[int]) -> None:
    assert spread(rows, count) == chosen


def test_rows_without_processing_are_the_recorded_ones_and_the_worst() -> None:
    module, x = Two(), torch.arange(20.0).reshape(10, 2)
    rows = record(module, {"x": x, "y": x * 10})
    found = from_rows(rows, signature_of(module, rows), 3, worst=7)
    assert list(found.inputs) == ["x", "y"]
    assert list(found.outputs) == ["sum", "difference"]
    np.testing.assert_array_equal(found.inputs["x"], x[[0, 4, 7, 9]])
    np.testing.assert_array_equal(found.inputs["y"], 10 * x[[0, 4, 7, 9]])
    np.testing.assert_array_equal(found.outputs["sum"], 11 * x[[0, 4, 7, 9]])
    content = json.loads(found.files()[GOLDEN])
    assert content == {"schema_version": 1, "count": 4, "rows": []}
    tensors = safetensors.numpy.load(found.files()[GOLDEN_TENSORS])
    assert set(tensors) == {"input.x", "input.y", "output.sum", "output.difference"}
    np.testing.assert_array_equal(tensors["output.difference"], -9 * x[[0, 4, 7, 9]])


def test_raw_rows_go_through_processing_and_the_trained_module() -> None:
    module = Line()
    rows = record(module, {"x": prepared(table(20))})
    found, verdict = from_raw(module, COLUMNS, table(20), rows, signature_of(module, rows), 3)
    assert verdict.passed
    assert verdict.message.startswith("20 of 20 raw rows")
    assert found.raw == [table(20)[i] for i in (0, 9, 19)]
    np.testing.assert_array_equal(found.outputs["output"], 2 * found.inputs["x"])
    assert [answer["label"] for answer in found.answers] == ["no", "no", "no"]
    stored = json.loads(found.files()[GOLDEN])["rows"]
    assert [row["raw"] for row in stored] == [{"json": row} for row in found.raw]
    assert [row["answer"] for row in stored] == found.answers


@pytest.mark.parametrize(
    ("seen", "passed", "said"),
    [(table(5), True, "5 of 5 raw rows"), (table(3), False, "raw row 3 is the first that is not: let the DataModule")],
)
def test_raw_rows_must_be_rows_that_were_validated_on(seen: list[Any], passed: bool, said: str) -> None:
    """All of those, though fewer are kept for parity."""
    module = Line()
    rows = record(module, {"x": prepared(seen)}, limit=1)
    _, verdict = from_raw(module, COLUMNS, table(5), rows, signature_of(module, rows), 3)
    assert verdict.passed is passed
    assert said in verdict.message
    assert verdict.measured == len(seen) / 5


def test_only_so_many_raw_rows_are_taken() -> None:
    """They may come from a generator that has no end."""

    def endless() -> Iterable[Any]:
        while True:
            yield from table(5)

    module = Line()
    rows = record(module, {"x": prepared(table(5))})
    _, verdict = from_raw(module, COLUMNS, endless(), rows, signature_of(module, rows), 3)
    assert verdict.message.startswith(f"{golden.RAW_ROWS} of {golden.RAW_ROWS} raw rows")


@pytest.mark.parametrize(
    ("processing", "raw", "error", "said"),
    [
        (COLUMNS, [], SignatureError, r"raw_rows\(\) gives none"),
        (COLUMNS, [{"a": 1.0}], ProcessingError, "Missing column 'b'"),
        (Processing(before=[Columns(numeric=("a",))]), [{"a": 1.0}], SignatureError, r"shape \[-1, 2\]; got \[1, 1\]"),
        (Processing(before=COLUMNS.before, after=[Labels(names=("one",))]), table(1), ProcessingError, "1 names for"),
    ],
)
def test_raw_rows_that_do_not_fit(processing: Processing, raw: list[Any], error: type[Exception], said: str) -> None:
    module = Line()
    rows = record(module, {"x": prepared(table(2))})
    with pytest.raises(error, match=said):
        from_raw(module, processing, raw, rows, signature_of(module, rows), 3)


def test_processing_makes_all_inputs() -> None:
    module, x = Two(), prepared(table(2))
    rows = record(module, {"x": x, "y": x})
    with pytest.raises(SignatureError, match=r"Missing input 'y' \(float32, shape \[-1, 2\]\)"):
        from_raw(module, COLUMNS, table(2), rows, signature_of(module, rows), 3)


def test_bytes_are_kept_as_base64() -> None:
    one = np.zeros((1, 2), np.float32)
    content = json.loads(golden.Golden({"x": one}, {"y": one}, [b"\x89PNG\x00"], ["answer"]).files()[GOLDEN])
    assert base64.b64decode(content["rows"][0]["raw"]["base64"]) == b"\x89PNG\x00"


def test_an_artifact_keeps_as_many_as_the_recipe_says(trained_cells: Run, tmp_path: Any) -> None:
    artifact = sl.export(trained_cells, {"golden_rows": 5}, to=str(tmp_path / "m"))
    content = json.loads(artifact.read(GOLDEN))
    raw = [row["raw"]["json"] for row in content["rows"]]
    data = CellTable()
    data.setup("validate")
    assert content["count"] == len(raw) == 5
    assert all(row in list(data.raw_rows()) for row in raw)
    tensors = safetensors.numpy.load(artifact.read(GOLDEN_TENSORS))
    np.testing.assert_array_equal(tensors["input.x"], np.stack([data.processing.prepare(row) for row in raw]))


@pytest.mark.parametrize("order", [range(20), range(19, -1, -1)])
def test_a_raw_row_is_known_by_what_it_makes_and_not_by_its_place(order: Iterable[int]) -> None:
    module, raw = Line(), [table(20)[i] for i in order]
    rows = record(module, {"x": prepared(table(20))})
    found = raw_of([4, 17], raw, COLUMNS, rows, signature_of(module, rows))
    assert found == {row: (raw.index(table(20)[row]), table(20)[row]) for row in (4, 17)}


def test_a_row_that_no_raw_row_makes_to_the_last_bit_has_none() -> None:
    module, nearly = Line(), table(20)
    rows = record(module, {"x": prepared(table(20))})
    nearly[4] = {"a": float(np.nextafter(np.float32(4), np.float32(5))), "b": -4.0}
    nearly[0] = {"a": 0.0, "b": 0.0}  # and not -0.0
    assert raw_of([0, 4, 5], nearly, COLUMNS, rows, signature_of(module, rows)) == {5: (5, table(20)[5])}
    assert raw_of([5], nearly[:5], COLUMNS, rows, signature_of(module, rows)) == {}


def test_of_raw_rows_that_make_the_same_row_that_in_its_place_is_taken() -> None:
    module, raw = Line(), [{"a": 1.0, "b": 1.0}] * 6
    rows = record(module, {"x": prepared(raw)})
    assert raw_of([3], raw, COLUMNS, rows, signature_of(module, rows)) == {3: (3, raw[3])}
