"""Steps of tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from raw_rows import COLUMNS, ROW
from step_conformance import StepConformance

from shipline.errors import ProcessingError
from shipline.processing import Columns, Processing, Step


class TestColumns(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return COLUMNS

    @pytest.fixture
    def value(self) -> dict[str, Any]:
        return dict(ROW)

    def test_numbers_come_first_then_a_one_for_each_category(self) -> None:
        found = COLUMNS(ROW)
        assert found.dtype == np.float32
        assert found.tolist() == [1, 2.5, 0, 1, 0]

    def test_the_order_of_the_row_does_not_matter(self) -> None:
        assert COLUMNS(dict(reversed(ROW.items()))).tolist() == COLUMNS(ROW).tolist()

    def test_the_order_of_columns_and_categories_survives_json(self) -> None:
        columns = Columns(numeric=("z", "a"), categorical={"y": ("2", "1"), "b": ("x",)})
        again = Processing.from_json(Processing([columns]).to_json())
        assert again.prepare({"a": 1, "b": "x", "y": "1", "z": 9}).tolist() == [9, 1, 0, 1, 1]

    @pytest.mark.parametrize("number", [0, -0.0, 1e38, -1e38, 3.4028235e38, 2**100, 1e-300, np.float64(2)])
    def test_every_float32_is_a_number(self, number: float) -> None:
        assert COLUMNS(ROW | {"age": number})[0] == np.float32(number)

    @pytest.mark.parametrize(
        "value", [True, False, "4", "", None, [1], {"value": 1}, 1j, b"4"], ids=lambda value: repr(value)
    )
    def test_what_is_no_number_is_refused(self, value: Any) -> None:
        with pytest.raises(ProcessingError) as caught:
            COLUMNS(ROW | {"age": value})
        assert str(caught.value) == f"Column 'age' must be a number; got {value!r}."

    @pytest.mark.parametrize(
        "value",
        [float("nan"), float("inf"), -float("inf"), 1e39, -1e39, 3.4028236e38, 2**128 - 2**103, 10**400, -(10**5000)],
        ids=lambda value: f"{type(value).__name__}",
    )
    def test_what_float32_cannot_hold_is_refused(self, value: float) -> None:
        with pytest.raises(ProcessingError, match="Column 'height' must be a finite float32 number, less than"):
            COLUMNS(ROW | {"height": value})

    @pytest.mark.parametrize("value", ["Red", "", None, 1, True, ["red"], {"red": 1}, float("nan")], ids=repr)
    def test_an_unknown_category_lists_the_known_ones(self, value: Any) -> None:
        with pytest.raises(ProcessingError) as caught:
            COLUMNS(ROW | {"colour": value})
        assert str(caught.value) == f"Column 'colour' must be one of red, green, blue; got {value!r}."

    def test_a_long_value_is_not_repeated_in_full(self) -> None:
        with pytest.raises(ProcessingError) as caught:
            COLUMNS(ROW | {"colour": "x" * 10_000})
        assert len(str(caught.value)) < 200

    @pytest.mark.parametrize(
        ("name", "hint"),
        [("agee", " Did you mean 'age'?"), ("color", " Did you mean 'colour'?"), ("weight", " Did you mean 'height'?"),
         ("xyz", ""), ("", "")],
    )  # fmt: skip
    def test_an_unknown_column_suggests_the_nearest(self, name: str, hint: str) -> None:
        with pytest.raises(ProcessingError) as caught:
            COLUMNS({**ROW, name: 1})
        assert str(caught.value) == f"Unknown column {name!r}.{hint}"

    @pytest.mark.parametrize("name", ["age", "height", "colour"])
    def test_a_missing_column_is_named(self, name: str) -> None:
        with pytest.raises(ProcessingError, match=f"Missing column '{name}'"):
            COLUMNS({key: value for key, value in ROW.items() if key != name})

    @pytest.mark.parametrize("value", [None, [1, 2.5, "green"], "age=1", 4, b"{}"])
    def test_what_is_no_object_is_refused(self, value: Any) -> None:
        with pytest.raises(ProcessingError, match=f"Expected a JSON object of columns; got {type(value).__name__}"):
            COLUMNS(value)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({}, "at least one column, and each name once"),
            ({"numeric": ("a", "a")}, "each name once"),
            ({"numeric": ("a",), "categorical": {"a": ("x",)}}, "each name once"),
            ({"categorical": {"a": ()}}, "column 'a' needs at least one category, and each once"),
            ({"categorical": {"a": ("x", "x")}}, "column 'a' needs at least one category, and each once"),
            ({"numeric": (1,)}, "valid string"),
        ],
    )
    def test_columns_that_make_no_sense_are_refused(self, parameters: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            Columns(**parameters)
