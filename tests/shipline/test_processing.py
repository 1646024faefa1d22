"""Processing: the list of steps as data."""

from __future__ import annotations

import json
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from raw_rows import COLUMNS, NOISE, ROW, encoded

from shipline.errors import ConfigError, IntegrityError, SchemaError, SignatureError, UnknownNameError
from shipline.processing import (
    DecodeImage,
    Grayscale,
    Labels,
    Layout,
    Normalize,
    Processing,
    Resize,
    Softmax,
    Step,
    TopK,
    step,
)
from shipline.signature import Signature, TensorSpec

PICTURES = Processing(
    before=[DecodeImage(), Grayscale(), Resize(height=8, width=8), Normalize(mean=(0.5,)), Layout()],
    after=[Softmax(), Labels(names=("a", "b", "c")), TopK(k=2)],
)


def test_from_a_picture_to_an_answer() -> None:
    row = PICTURES.prepare(encoded(np.full((16, 16, 3), 255, np.uint8)))
    assert (row.dtype, row.shape) == (np.float32, (1, 8, 8))
    assert (row == 0.5).all()
    answer = PICTURES.answer(np.array([0, 0, np.log(2)], np.float32))
    assert answer["label"] == "c"
    assert answer["scores"] == pytest.approx({"c": 0.5, "a": 0.25})


def test_the_same_after_json() -> None:
    stored = PICTURES.to_json()
    again = Processing.from_json(stored)
    picture, output = encoded(NOISE), np.array([1.5, -2, 0.25], np.float32)
    assert again.prepare(picture).tobytes() == PICTURES.prepare(picture).tobytes()
    assert again.answer(output) == PICTURES.answer(output)
    assert again.to_json() == stored


def test_what_is_stored_can_be_read_by_people() -> None:
    assert json.loads(Processing([Resize(height=8, width=9)], [Softmax()]).to_json()) == {
        "schema_version": 1,
        "before": [{"step": "resize", "height": 8, "width": 9, "interpolation": "bilinear"}],
        "after": [{"step": "softmax"}],
    }


def test_no_steps_change_nothing() -> None:
    nothing = Processing.from_json(Processing([]).to_json())
    assert nothing.prepare([1, 2]).tolist() == [1, 2]
    assert nothing.answer(np.array([1.5, 2.5], np.float32)) == [1.5, 2.5]


@pytest.mark.parametrize(
    ("steps", "takes_bytes"), [([DecodeImage(), Layout()], True), ([COLUMNS], False), ([], False), ([Layout()], False)]
)
def test_pictures_are_sent_as_bytes_and_all_else_as_json(steps: list[Step], takes_bytes: bool) -> None:
    assert Processing(steps).takes_bytes is takes_bytes


@pytest.mark.parametrize("steps", [[DecodeImage()], [DecodeImage(), Grayscale(), Layout()], [COLUMNS]])
def test_torch_takes_a_prepared_row_without_a_warning(steps: list[Step]) -> None:
    """It warns of an array that it may not write to, such as Pillow's."""
    row = Processing(steps).prepare(ROW if steps == [COLUMNS] else encoded(NOISE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.from_numpy(row).shape == row.shape


class Halves(Step):
    """[2n] -> two inputs of [n]."""

    NAME: ClassVar[str] = "halves"

    def __call__(self, value: Any) -> Any:
        return dict(zip(("left", "right"), np.split(np.asarray(value, np.float32), 2), strict=True))


def test_a_step_may_make_several_inputs() -> None:
    left, right = (TensorSpec(name=name, dtype="float32", shape=(-1, 2)) for name in ("left", "right"))
    two, one = Signature(inputs=(left, right), outputs=(left,)), Signature(inputs=(left,), outputs=(left,))
    processing = Processing(before=[Halves()])
    found = processing.inputs([1, 2, 3, 4], two)
    assert {name: array.tolist() for name, array in found.items()} == {"left": [[1, 2]], "right": [[3, 4]]}
    with pytest.raises(SignatureError, match="Unknown input 'right'; known: left"):
        processing.inputs([1, 2, 3, 4], one)
    plain = Processing(before=[])
    assert plain.inputs(np.float32([1, 2]), one)["left"].tolist() == [[1, 2]]
    with pytest.raises(SignatureError, match="Missing input 'right'"):
        plain.inputs(np.float32([1, 2]), two)


def stored(**changes: Any) -> bytes:
    """A `processing.json`, with the changes."""
    return json.dumps({"schema_version": 1, "before": [], "after": [], **changes}).encode()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"step": "resiz"}, r"Unknown step 'resiz'\. Did you mean 'resize'\? Known: columns, decode_image, grayscale"),
        ({"step": "../resize"}, r"Unknown step '\.\./resize'"),
        ({"step": "os:system"}, "Unknown step 'os:system'"),
        ({"step": ""}, "Unknown step ''"),
        ({"step": "resize", "height": 8}, r"Step 'resize': width: Field required\."),
        ({"step": "resize", "height": 0, "width": 8}, "Step 'resize': height: Input should be greater"),
        ({"step": "softmax", "axis": 1}, "Step 'softmax': axis: Extra inputs are not permitted"),
        ({"step": "labels", "name": ["a"]}, "Step 'labels': names: Field required"),
        ({"step": "labels", "names": ["a"], "name": "b"}, "Step 'labels': name: Extra inputs"),
        ({"step": "columns"}, "Step 'columns': .*at least one column"),
    ],
)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_stored_step_that_cannot_be_used_is_named(side: str, item: dict[str, Any], message: str) -> None:
    with pytest.raises(IntegrityError, match=f"The stored processing cannot be used: {message}"):
        Processing.from_json(stored(**{side: [item]}))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\x80\x05pickle",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        stored(schema_version="one"),
        stored(schema_version=None),
        stored(before=3),
        stored(before=None),
        stored(before={"step": "softmax"}),
        stored(before=["softmax"]),
        stored(before=[{}]),
        stored(before=[{"step": 3}]),
        stored(after=[{"step": ["softmax"]}]),
        b'{"schema_version": 1, "before": []}',
    ],
    ids=lambda data: repr(data[:60]),
)
def test_what_is_no_processing_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="The stored processing is damaged: a JSON object of steps is expected"):
        Processing.from_json(data)


def test_a_newer_processing_is_refused_whatever_else_it_holds() -> None:
    with pytest.raises(SchemaError, match="has schema version 2; this Shipline reads up to 1"):
        Processing.from_json(b'{"schema_version": 2, "graph": {}}')


def test_a_step_made_by_name_is_the_same_as_by_class() -> None:
    assert step("resize", height=8, width=9) == Resize(height=8, width=9)


def test_a_step_made_by_name_says_what_is_wrong() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown step 'gray'\. Did you mean 'grayscale'"):
        step("gray")
    with pytest.raises(ConfigError, match=r"Step 'top_k': k: Input should be greater than or equal to 1\."):
        step("top_k", k=0)
    with pytest.raises(ConfigError, match=r"Step 'normalize': std: Value error, must not be 0\."):
        step("normalize", std=(0,))
