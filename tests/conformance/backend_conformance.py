"""What every backend must do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend

ROWS = 8


@dataclass(frozen=True)
class Case:
    """A model for the backend under test, `rows -> inputs`, the same function in numpy, and inputs that raise."""

    model: bytes
    inputs: Callable[[int], Arrays]
    function: Callable[[Arrays], Arrays]
    poison: Arrays


class BackendConformance:
    """Inherit, and give `backend_class` and a fixture `case`."""

    backend_class: type[Backend]

    @pytest.fixture
    def backend(self, case: Case) -> Backend:
        return self.backend_class.load(case.model, ServingSettings(max_batch_size=ROWS, threads=64))

    @pytest.mark.parametrize("rows", [1, 2, ROWS])
    def test_outputs_are_right_by_name_dtype_and_shape(self, backend: Backend, case: Case, rows: int) -> None:
        inputs = case.inputs(rows)
        check_equal(backend.run(inputs), case.function(inputs))

    def test_a_row_does_not_depend_on_its_batch_mates(self, backend: Backend, case: Case) -> None:
        inputs = case.inputs(ROWS)
        together = backend.run(inputs)
        for row in range(ROWS):
            alone = backend.run({name: array[row : row + 1] for name, array in inputs.items()})
            check_equal(alone, {name: array[row : row + 1] for name, array in together.items()})

    def test_inputs_stay_as_they_are(self, backend: Backend, case: Case) -> None:
        inputs = case.inputs(ROWS)
        before = {name: array.copy() for name, array in inputs.items()}
        backend.run(inputs)
        check_equal(inputs, before)

    def test_a_later_batch_does_not_write_into_an_earlier_answer(self, backend: Backend, case: Case) -> None:
        inputs = case.inputs(ROWS)
        first = backend.run(inputs)
        kept = {name: array.copy() for name, array in first.items()}
        backend.run({name: array[::-1].copy() for name, array in inputs.items()})
        check_equal(first, kept)

    def test_takes_arrays_that_are_views(self, backend: Backend, case: Case) -> None:
        """Of a larger buffer, of every second row, and read-only."""
        inputs = case.inputs(2 * ROWS)
        views = {name: array[::2] for name, array in inputs.items()}
        for view in views.values():
            view.flags.writeable = False
        check_equal(backend.run(views), case.function(views))

    def test_runs_in_any_thread(self, backend: Backend, case: Case) -> None:
        inputs = case.inputs(ROWS)
        for _ in range(3):
            with ThreadPoolExecutor(1) as pool:
                check_equal(pool.submit(backend.run, inputs).result(), case.function(inputs))

    def test_works_on_after_a_batch_that_raised(self, backend: Backend, case: Case) -> None:
        with pytest.raises(Exception, match=r"."):
            backend.run(case.poison)
        inputs = case.inputs(ROWS)
        check_equal(backend.run(inputs), case.function(inputs))

    def test_refuses_bytes_that_are_no_model(self) -> None:
        with pytest.raises(Exception, match=r"."):
            self.backend_class.load(b"\x00no model", ServingSettings())

    def test_closes(self, backend: Backend) -> None:
        backend.close()


def check_equal(found: Arrays, want: Arrays) -> None:
    """The same names, dtypes and shapes, and values up to the last digits."""
    assert found.keys() == want.keys()
    for name, array in want.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
