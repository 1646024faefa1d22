"""What every step of the processing must do."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from shipline import plugins
from shipline.processing import Processing, Step


class StepConformance:
    """Inherit, and give two fixtures: `step`, with parameters other than the defaults, and `value`, which it takes."""

    def test_is_found_by_its_name(self, step: Step) -> None:
        assert plugins.load("step", step.NAME) is type(step)

    def test_is_data(self, step: Step, value: Any) -> None:
        """Name and parameters are all there is to it, and JSON (RFC 8259) holds them."""
        stored = Processing(before=[step], after=[step]).to_json()
        json.loads(stored, parse_constant=pytest.fail)
        again = Processing.from_json(stored)
        assert again.before == again.after == (step,)
        assert_same(again.before[0](value), step(value))
        assert again.to_json() == stored

    def test_is_frozen(self, step: Step) -> None:
        for name in (*type(step).model_fields, "invented"):
            with pytest.raises(ValidationError, match=r"frozen|no field"):
                setattr(step, name, 1)

    def test_refuses_unknown_parameters(self, step: Step) -> None:
        with pytest.raises(ValidationError, match=r"invented\n  Extra inputs are not permitted"):
            type(step)(**step.model_dump(), invented=1)

    def test_gives_the_same_every_time(self, step: Step, value: Any) -> None:
        assert_same(step(value), step.model_copy()(copy.deepcopy(value)))

    def test_gives_the_same_in_many_threads(self, step: Step, value: Any) -> None:
        """Servers and loaders share one object."""
        expected = step(value)
        with ThreadPoolExecutor(4) as pool:
            for result in pool.map(step, [value] * 16):
                assert_same(result, expected)

    def test_leaves_its_input_alone(self, step: Step, value: Any) -> None:
        before = copy.deepcopy(value)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
        step(value)
        assert_same(value, before)


def assert_same(one: Any, other: Any) -> None:
    """Fail unless both are the same to the last bit."""
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    else:
        assert one == other
