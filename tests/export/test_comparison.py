"""Answers beside the trained module's: the rows that differ most, and the agreement of each class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import shipline as sl
from shipline.export.comparison import WORST_ROWS, Comparison, compare
from shipline.export.rows import Rows
from shipline.processing import Labels, Processing, Softmax

SCORES = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 0]] * 4  # 11 rows; classes of 3, 3 and 5 rows


class Other:
    """Answers with other numbers than the module; keeps how large the batches were."""

    def __init__(self, *outputs: np.ndarray) -> None:
        self._outputs = outputs
        self.batches: list[int] = []

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        rows = inputs["row"].ravel()
        self.batches.append(len(rows))
        return [output[rows] for output in self._outputs]


def compared(
    own: list[np.ndarray], found: list[np.ndarray], *, batch: int = 4, processing: Processing | None = None
) -> Comparison:
    """Compare answers to rows that hold their own numbers."""
    count = len(own[0])
    rows = Rows(count)
    rows.add({"row": torch.arange(count)[:, None]}, tuple(map(torch.from_numpy, own)))
    outputs = tuple(
        sl.TensorSpec(name=f"y{i}", dtype="float32", shape=(-1, *each.shape[1:])) for i, each in enumerate(own)
    )
    signature = sl.Signature(inputs=(sl.TensorSpec(name="row", dtype="int64", shape=(-1, 1)),), outputs=outputs)
    runtime: Any = Other(*found)
    made = compare(runtime, rows, signature, batch, processing)
    assert runtime.batches == [batch] * (count // batch) + [count % batch] * (count % batch > 0)
    return made


def changed(values: np.ndarray, *places: tuple[Any, float]) -> np.ndarray:
    """A copy with some numbers changed."""
    copy = values.copy()
    for place, value in places:
        copy[place] = value
    return copy


def test_the_rows_that_differ_most_come_first() -> None:
    by = {3: 0.4, 0: 0.2, 10: 0.8, 7: 0.1, 5: -0.6, 8: 0.05}
    found = changed(SCORES, *(((row, 1), SCORES[row, 1] + more) for row, more in by.items()))
    worst = compared([SCORES], [found]).worst
    assert len(worst) == WORST_ROWS
    assert [each.row for each in worst] == [10, 5, 3, 0, 7]
    assert [each.difference for each in worst] == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.025])
    assert [(each.output, each.element) for each in worst] == [("y0", (1,))] * 5
    assert worst[2].values == pytest.approx((4.0, 4.4))
    assert (worst[2].trained, worst[2].found) == ("1: 4, 0: 0, 2: 0", "1: 4.4, 0: 0, 2: 0")


def test_equal_answers_differ_nowhere() -> None:
    assert compared([SCORES], [SCORES]).worst == []


def test_of_several_outputs_that_counts_which_differs_most_for_its_size() -> None:
    large = np.full((11, 2, 4), 1000.0, np.float32)
    worst = compared(
        [SCORES, large], [changed(SCORES, ((2, 0), 1.0)), changed(large, ((2, 1, 3), 1100.0), ((6, 0, 1), 1010.0))]
    ).worst
    assert [(each.row, each.output, each.element) for each in worst] == [(2, "y0", (0,)), (6, "y1", (0, 1))]
    assert worst[1].trained == "1000, 1000, 1000, 1000, 1000, 1000, … (8 numbers)"
    assert worst[1].found == "1000, 1010, 1000, 1000, 1000, 1000, … (8 numbers)"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_differs_most(value: float) -> None:
    worst = compared([SCORES], [changed(SCORES, ((3, 1), value), ((5, 0), 3.0))]).worst
    assert [(each.row, each.difference) for each in worst] == [(3, math.inf), (5, 0.75)]


def test_answers_of_another_shape_are_told() -> None:
    made = compared([SCORES], [SCORES[:, :2]])
    assert [each.difference for each in made.worst] == [math.inf] * WORST_ROWS
    assert (made.worst[0].element, made.worst[0].values, made.worst[0].found) == ((), (), "4, 0")
    assert made.agreement[0].agreed == 0


def test_agreement_is_counted_by_the_class_that_the_trained_module_answers() -> None:
    found = changed(SCORES, ((0, 2), 9.0), ((7, 0), 9.0), ((9, 1), math.nan))
    [agreement] = compared([SCORES], [found]).agreement
    assert [(each.number, each.name, each.rows, each.agreed) for each in agreement.classes] == [
        (0, "0", 3, 2), (1, "1", 3, 3), (2, "2", 5, 3),
    ]  # fmt: skip
    assert (agreement.output, agreement.rows, agreement.agreed) == ("y0", 11, 8)


def test_a_class_that_is_never_answered_is_not_counted() -> None:
    scores = np.pad(SCORES, ((0, 0), (0, 900)))
    [agreement] = compared([scores], [scores]).agreement
    assert [each.number for each in agreement.classes] == [0, 1, 2]


def test_classes_have_the_names_that_the_processing_gives_them() -> None:
    processing = Processing([], [Softmax(), Labels(names=("cat", "dog", "<emu>"))])
    made = compared([SCORES, SCORES], [SCORES, changed(SCORES, ((4, 0), 5.0))], processing=processing)
    assert [[each.name for each in agreement.classes] for agreement in made.agreement] == [
        ["cat", "dog", "<emu>"],
        ["0", "1", "2"],  # processing is about the first output
    ]
    made = compared([SCORES], [changed(SCORES, ((4, 0), 5.0))], processing=processing)
    assert (made.worst[0].trained, made.worst[0].found) == ("dog: 4, cat: 0, <emu>: 0", "cat: 5, dog: 4, <emu>: 0")


def test_labels_of_another_number_name_nothing() -> None:
    processing = Processing([], [Labels(names=("no", "yes"))])
    assert [each.name for each in compared([SCORES], [SCORES], processing=processing).agreement[0].classes] == [*"012"]


@pytest.mark.parametrize(
    "output",
    [
        np.ones((11, 1), np.float32),
        np.ones((11, 1001), np.float32),
        np.ones((11, 3), np.int64),
        np.ones((11, 3, 2), np.float32),
        np.ones(11, np.float32),
        np.tile(np.float32([0.6, -0.8]), (11, 1)),  # of length one: an embedding
    ],
)
def test_what_no_classifier_gives_has_no_classes(output: np.ndarray) -> None:
    made = compared([output], [output + 1])
    assert made.agreement == []
    assert len(made.worst) == WORST_ROWS


def test_probabilities_are_a_classifiers() -> None:
    certain = SCORES / 4  # of length one, too
    assert len(compared([certain], [certain]).agreement) == 1
