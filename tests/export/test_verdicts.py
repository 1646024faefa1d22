"""Each gate by itself: what it makes of answers, metrics, times and sizes that are given to it."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import shipline as sl
from shipline.errors import GateError
from shipline.export import gates
from shipline.export.latency import Latency
from shipline.export.lengths import Shorter
from shipline.export.recipe import Recipe
from shipline.export.rows import Rows

# ---- answers, again and again ----------------------------------------------------------------------------------------


class Drifting:
    """Answers with its rows, plus as much more each time."""

    def __init__(self, by: float) -> None:
        self._by, self._more = by, 0.0

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._more += self._by
        return [inputs["x"] + np.float32(self._more)]


def rows_of(values: np.ndarray) -> tuple[Rows, sl.Signature]:
    """Rows of a module that answers with its input."""
    rows = Rows(len(values))
    rows.add({"x": torch.from_numpy(values)}, torch.from_numpy(values))
    spec = sl.TensorSpec(name="x", dtype="float32", shape=(-1, *values.shape[1:]))
    return rows, sl.Signature(inputs=(spec,), outputs=(spec.model_copy(update={"name": "y"}),))


class WrongInSome:
    """Answers with its input, and in batches of some sizes with one more; keeps how large they were."""

    def __init__(self, *sizes: int) -> None:
        self._sizes = sizes
        self.batches: list[int] = []

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.batches.append(len(inputs["x"]))
        return [inputs["x"] + np.float32(self.batches[-1] in self._sizes)]


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, {1, 2}), (2, {1, 2}), (3, {1, 2, 3, 70 % 3}), (4, {1, 2, 3, 4, 70 % 4}), (32, {1, 2, 3, 17, 31, 32, 70 % 32})],
)
def test_parity_is_asked_for_in_batches_of_many_sizes(largest: int, sizes: set[int]) -> None:
    rows, signature = rows_of(np.linspace(0, 1, 70, dtype=np.float32)[:, None])
    runtime: Any = WrongInSome()
    assert gates.parity(runtime, rows, signature, largest, 1e-4)[0].passed
    assert set(runtime.batches) == sizes
    assert sum(runtime.batches) < 2.5 * (32 + 64 + 70)


class Sums:
    """Keeps how many rows of which length it was asked for by batch; adds one in some of these."""

    def __init__(self, *wrong: tuple[int, int]) -> None:
        self._wrong, self.asked = wrong, Counter[tuple[int, int]]()

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        rows, length = inputs["x"].shape
        self.asked[rows, length] += rows
        return [inputs["x"].sum(axis=1, keepdims=True) + np.float32((rows, length) in self._wrong)]


def padded(shorter_rows: int) -> tuple[Rows, Any, tuple[Shorter, ...]]:
    """Rows of 3 numbers in 8 places, whose sum is asked for."""
    values = np.pad(np.linspace(1, 2, 210, dtype=np.float32).reshape(70, 3), [(0, 0), (0, 5)])
    rows, sums = Rows(70), values.sum(axis=1, keepdims=True)
    rows.add({"x": torch.from_numpy(values)}, torch.from_numpy(sums))
    return rows, rows_of(values)[1], (Shorter({"x": values[:shorter_rows, :3]}, [sums[:shorter_rows]]),)


@pytest.mark.parametrize(("shorter_rows", "in_full"), [(48, 2), (31, 64)])
def test_rows_of_the_usual_length_stand_for_most_in_batches_between(shorter_rows: int, in_full: int) -> None:
    sums, (rows, signature, shorter) = Sums(), padded(shorter_rows)
    assert gates.parity(sums, rows, signature, 32, 1e-4, shorter)[0].passed
    assert {rows for rows, length in sums.asked if length == 8} >= {1, 2, 3, 31, 32}
    assert sums.asked[2, 8] == in_full
    assert sums.asked[2, 3] == (shorter_rows if shorter_rows >= 32 else 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ((31, 8), r"\(row \d+, output 'y', in a batch of 31\)"),
        ((2, 3), r"\(row \d+ of those of a length of 3, output 'y', in a batch of 2\)"),
    ],
)
def test_a_wrong_answer_is_seen_at_the_usual_length_and_in_full(wrong: tuple[int, int], said: str) -> None:
    rows, signature, shorter = padded(48)
    verdict, _ = gates.parity(Sums(wrong), rows, signature, 32, 1e-4, shorter)
    assert not verdict.passed
    assert re.search(said, verdict.message)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 31, 32, 6])
def test_an_answer_that_is_wrong_in_batches_of_one_size_is_seen(size: int) -> None:
    rows, signature = rows_of(np.linspace(0, 1, 70, dtype=np.float32)[:, None])
    runtime: Any = WrongInSome(size)
    verdict, worst = gates.parity(runtime, rows, signature, 32, 1e-4)
    assert not verdict.passed
    assert (worst.batch, worst.difference) == (size, pytest.approx(1.0))
    assert f"in a batch of {size}); 0.0001 is allowed" in verdict.message


@pytest.mark.parametrize(
    ("by", "other", "said"),
    [
        (0.0, 0.0, "the same rows are answered alike, run again and with 4 threads"),
        (0.1, 0.0, "the same rows differ by 0.3 of the largest value (run again)"),
        (0.0, 0.2, "the same rows differ by 0.2 of the largest value (with 4 threads)"),
    ],
)
def test_answers_must_not_change(by: float, other: float, said: str) -> None:
    rows, signature = rows_of(np.linspace(0, 1, 8, dtype=np.float32)[:, None])
    runtimes: Any = Drifting(by), {4: Drifting(other)}
    verdict = gates.determinism(*runtimes, rows, signature, 8, 1e-4)
    assert verdict.message == said
    assert verdict.passed is (by == other == 0.0)


def test_a_row_that_is_not_finite_is_told_from_its_mates() -> None:
    class Hides:
        """Makes numbers of what is not finite, as whole numbers of 8 bits do."""

        def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.nan_to_num(inputs["x"], posinf=1.0)]

    rows, signature = rows_of(np.linspace(0, 1, 8, dtype=np.float32)[:, None])
    hiding: Any = Hides()
    verdict = gates.not_finite(hiding, rows, signature, 8, 1e-4)
    assert verdict is not None
    assert verdict.passed
    assert verdict.message.endswith("its own is made of ordinary numbers, as if nothing were wrong")
    telling: Any = Drifting(0.0)
    verdict = gates.not_finite(telling, rows, signature, 8, 1e-4)
    assert verdict is not None
    assert verdict.message == "a row of NaN or infinity changes no other row's answer; its own says so"


def test_a_row_that_is_not_finite_may_be_refused() -> None:
    """Such as one of which an index is made, which is out of range then."""

    class Refuses:
        def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            if not np.isfinite(inputs["x"]).all():
                raise GateError("onnxruntime cannot run the graph.")
            return [inputs["x"]]

    refusing: Any = Refuses()
    verdict = gates.not_finite(refusing, *rows_of(np.linspace(0, 1, 8, dtype=np.float32)[:, None]), 8, 1e-4)
    assert verdict is not None
    assert verdict.passed
    assert "no other row's answer; a batch with one fails, and servers run it in halves" in verdict.message


def test_whole_numbers_are_always_finite() -> None:
    rows = Rows(2)
    rows.add({"x": torch.ones(2, 1, dtype=torch.int64)}, torch.ones(2, 1))
    nobody: Any = None
    assert gates.not_finite(nobody, rows, nobody, 2, 0.0) is None


# ---- verdicts, one by one --------------------------------------------------------------------------------------------


class TestMetricVerdicts:
    """What is worse, in which direction, and by how much."""

    CASES: ClassVar = [
        ("max", 0.9, 0.9, True, "no worse"),
        ("max", 0.9, 0.95, True, "no worse"),
        ("max", 0.9, 0.896, True, "worse by 0.004"),
        ("max", 0.9, 0.89, False, "worse by 0.01"),
        ("min", 0.3, 0.29, True, "no worse"),
        ("min", 0.3, 0.304, True, "worse by 0.004"),
        ("min", 0.3, 0.31, False, "worse by 0.01"),
        ("max", 0.9, float("nan"), False, "worse by nan"),
        ("max", float("nan"), 0.9, False, "worse by nan"),
        ("max", 0.9, float("inf"), False, "no worse"),
    ]

    @pytest.mark.parametrize(("mode", "trained", "exported", "passed", "said"), CASES)
    def test_verdict(self, mode: str, trained: float, exported: float, passed: bool, said: str) -> None:
        verdict = gates.metric("val_x", mode, trained, exported, 0.005)
        assert verdict.passed is passed
        assert said in verdict.message
        assert verdict.measured is None or np.isfinite(verdict.measured)


def taken(batch: int, median: float) -> Latency:
    return Latency(batch, median, median, median, (median,))


@pytest.mark.parametrize(
    ("fast", "needed", "passed", "measured"),
    [
        ((1.0, 1.0), 1.0, True, 2.0),
        ((4.0, 1.0), 1.0, True, 1.0),
        ((4.0, 2.0), 1.0, False, 0.7071),
        ((1.0, 1.0), 2.1, False, 2.0),
    ],
)
def test_a_speed_up_is_the_geometric_mean_over_the_batches(
    fast: tuple[float, float], needed: float, passed: bool, measured: float
) -> None:
    candidate, baseline = [taken(1, fast[0]), taken(32, fast[1])], [taken(1, 2.0), taken(32, 2.0)]
    verdict = gates.latency(candidate, baseline, Recipe(min_speedup=needed))
    assert verdict.passed is passed
    assert verdict.measured == pytest.approx(measured, abs=1e-4)


@pytest.mark.parametrize(("candidate", "passed"), [(99, True), (100, False), (101, False)])
def test_a_size_must_be_less(candidate: int, passed: bool) -> None:
    assert gates.size(candidate, 100).passed is passed


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 1.0], [np.inf, 3.0], 2.0),
        ([np.nan], [1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([np.inf], [-np.inf], np.inf),
        ([np.inf], [1.0], np.inf),
        ([1.0, 2.0], [1.0], np.inf),
        ([3], [5], 2.0),
        ([True], [False], 1.0),
        (np.float32(1.5), np.float32(1.0), 0.5),
    ],
)
def test_the_difference_of_two_outputs(one: Any, other: Any, difference: float) -> None:
    assert gates.largest_difference(np.asarray(one), np.asarray(other)) == difference
