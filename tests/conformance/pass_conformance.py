"""What every pass must do."""

from __future__ import annotations

import copy
import logging

import numpy as np
import onnx
import pytest

from shipline.artifact import ServingSettings
from shipline.errors import GateError
from shipline.export.passes.base import GraphPass, Material
from shipline.export.rows import Arrays
from shipline.export.runtime import Runtime


class PassConformance:
    """Inherit, and give a fixture `made`, the pass, and one or more graphs with their rows as a fixture `case`."""

    @pytest.fixture
    def case(self) -> tuple[bytes, Material]:
        """A graph that the pass can take, and what it may look at."""
        raise NotImplementedError

    def test_the_signature_stays(self, made: GraphPass, case: tuple[bytes, Material]) -> None:
        model, material = case
        before, after = (onnx.load_from_string(each).graph for each in (model, made.apply(model, material)))
        assert [value.name for value in after.output] == [value.name for value in before.output]
        assert [value.name for value in after.input] == [value.name for value in before.input]
        assert [value.type.tensor_type.elem_type for value in (*after.input, *after.output)] == [
            value.type.tensor_type.elem_type for value in (*before.input, *before.output)
        ]

    @pytest.mark.parametrize("rows", [1, 3, 32])
    def test_answers_are_about_those_of_before(self, made: GraphPass, case: tuple[bytes, Material], rows: int) -> None:
        model, material = case
        inputs = first(material.calibration(), rows)
        settings = ServingSettings()
        before, after = (Runtime(each, settings).run(inputs) for each in (model, made.apply(model, material)))
        for one, other in zip(before, after, strict=True):
            assert one.shape == other.shape
            assert np.abs(one - other).max() <= made.tolerance * np.abs(one).max()

    def test_the_graph_is_smaller_if_it_must_be(self, made: GraphPass, case: tuple[bytes, Material]) -> None:
        model, material = case
        assert len(made.apply(model, material)) < len(model) or not made.shrinks

    def test_the_same_graph_and_rows_give_the_same(self, made: GraphPass, case: tuple[bytes, Material]) -> None:
        model, material = case
        assert made.apply(model, material) == made.apply(model, material)

    def test_the_graph_it_was_given_stays_as_it_is(self, made: GraphPass, case: tuple[bytes, Material]) -> None:
        model, material = case
        before = bytes(model)
        made.apply(model, material)
        assert model == before

    def test_what_is_no_graph_is_refused(self, made: GraphPass, case: tuple[bytes, Material]) -> None:
        with pytest.raises(GateError, match="so nothing was published"):
            made.apply(b"no graph", case[1])

    def test_nobody_is_set_up_who_logs(
        self, made: GraphPass, case: tuple[bytes, Material], capfd: pytest.CaptureFixture[str]
    ) -> None:
        root = logging.getLogger()
        before = [*root.handlers], root.level
        made.apply(*case)
        assert ([*root.handlers], root.level) == before
        assert capfd.readouterr().out == ""

    def test_two_of_the_same_settings_are_equal(self, made: GraphPass) -> None:
        assert made == copy.copy(made)


def first(rows: Arrays, count: int) -> Arrays:
    """The first rows of each array."""
    return {name: array[:count] for name, array in rows.items()}
