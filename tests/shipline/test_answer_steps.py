"""Steps that make answers of outputs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from step_conformance import StepConformance

from shipline.errors import ProcessingError
from shipline.processing import Labels, Sigmoid, Softmax, Step, TopK


class TestSoftmax(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Softmax()

    @pytest.fixture
    def value(self) -> np.ndarray:
        return np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]], np.float32)

    def test_probabilities_are_those_of_the_formula(self) -> None:
        found = Softmax()(np.log(np.array([1, 2, 5], np.float32)))
        assert found.dtype == np.float64
        assert found == pytest.approx([0.125, 0.25, 0.625], abs=1e-7)

    def test_each_row_sums_to_1(self) -> None:
        logits = np.random.default_rng(0).normal(0, 30, (50, 7)).astype(np.float32)
        assert Softmax()(logits).sum(axis=-1) == pytest.approx(np.ones(50))

    @pytest.mark.parametrize(
        ("logits", "probabilities"),
        [
            ([1e38, 0, -1e38], [1, 0, 0]),
            ([3.4e38, 3.4e38], [0.5, 0.5]),
            ([-3.4e38, -3.4e38], [0.5, 0.5]),
            ([1000, 1000, -1000], [0.5, 0.5, 0]),
            ([-float("inf"), 0], [0, 1]),  # a class that is masked out
            ([5], [1]),
        ],
    )
    def test_extreme_logits_neither_overflow_nor_warn(self, logits: list[float], probabilities: list[float]) -> None:
        assert Softmax()(np.array(logits, np.float32)).tolist() == probabilities

    @pytest.mark.parametrize("logits", [[float("nan"), 0], [float("inf"), 0], [-float("inf")] * 2])
    def test_logits_that_are_no_numbers_give_nan(self, logits: list[float]) -> None:
        assert np.isnan(Softmax()(np.array(logits, np.float32))).all()

    def test_whole_numbers_are_logits_too(self) -> None:
        assert Softmax()(np.array([7, 7], np.int64)).tolist() == [0.5, 0.5]


class TestSigmoid(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Sigmoid()

    @pytest.fixture
    def value(self) -> np.ndarray:
        return np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]], np.float32)

    def test_probabilities_are_those_of_the_formula(self) -> None:
        found = Sigmoid()(np.log(np.array([1, 3, 0.25], np.float32)))
        assert found.dtype == np.float64
        assert found == pytest.approx([0.5, 0.75, 0.2], abs=1e-7)

    def test_extreme_logits_neither_overflow_nor_warn(self) -> None:
        logits = np.array([3.4e38, -3.4e38, float("inf"), -float("inf"), float("nan")], np.float32)
        np.testing.assert_array_equal(Sigmoid()(logits), [1, 0, 1, 0, float("nan")])

    def test_whole_numbers_are_logits_too(self) -> None:
        assert Sigmoid()(np.array([0, 0], np.int64)).tolist() == [0.5, 0.5]


class TestLabels(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return Labels(names=("cat", "dog", "ant"))

    @pytest.fixture
    def value(self) -> np.ndarray:
        return np.array([0.2, 0.7, 0.1])

    def test_the_best_comes_first(self, step: Step, value: np.ndarray) -> None:
        answer = step(value)
        assert answer == {"label": "dog", "score": 0.7, "scores": {"dog": 0.7, "cat": 0.2, "ant": 0.1}}
        assert list(answer["scores"]) == ["dog", "cat", "ant"]
        json.dumps(answer)

    def test_equal_scores_keep_the_order_of_the_names(self, step: Step) -> None:
        assert list(step(np.array([0.5, 0.5, 0.5]))["scores"]) == ["cat", "dog", "ant"]

    def test_a_score_that_is_no_number_is_the_worst(self, step: Step) -> None:
        assert list(step(np.array([np.nan, -5, 1]))["scores"]) == ["ant", "dog", "cat"]

    @pytest.mark.parametrize("shape", [(2,), (4,), (1, 3), ()])
    def test_scores_that_do_not_fit_the_names_are_refused(self, step: Step, shape: tuple[int, ...]) -> None:
        with pytest.raises(ProcessingError) as caught:
            step(np.zeros(shape))
        assert str(caught.value) == f"labels has 3 names for scores of shape {list(shape)}."

    @pytest.mark.parametrize("names", [(), ("a", "b", "a"), (1, 2)])
    def test_names_that_cannot_be_told_apart_are_refused(self, names: tuple[Any, ...]) -> None:
        with pytest.raises(ValidationError, match="names"):
            Labels(names=names)


class TestTopK(StepConformance):
    @pytest.fixture
    def step(self) -> Step:
        return TopK(k=2)

    @pytest.fixture
    def value(self) -> dict[str, Any]:
        return Labels(names=("cat", "dog", "ant"))(np.array([0.2, 0.7, 0.1]))

    def test_the_best_are_kept(self, step: Step, value: dict[str, Any]) -> None:
        assert step(value) == {"label": "dog", "score": 0.7, "scores": {"dog": 0.7, "cat": 0.2}}

    def test_more_than_there_are_keeps_all(self, value: dict[str, Any]) -> None:
        assert TopK(k=10**9)(value) == value

    def test_plain_scores_are_called_by_their_index(self) -> None:
        assert TopK(k=1)(np.array([0.2, 0.7, 0.1])) == {"label": "1", "score": 0.7, "scores": {"1": 0.7}}

    @pytest.mark.parametrize("k", [0, -1, 1.5, None])
    def test_a_k_that_keeps_nothing_is_refused(self, k: Any) -> None:
        with pytest.raises(ValidationError, match="k\n"):
            TopK(k=k)
