"""Signatures: what tensors may be, and errors that name the tensor, what was expected and what came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from shipline.errors import SignatureError
from shipline.signature import OIP_DATATYPES, Signature, TensorSpec


def spec(name: str = "x", dtype: str = "float32", shape: tuple[int, ...] = (-1, 3)) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


SIGNATURE = Signature(
    inputs=(spec("image", "float32", (-1, 1, 8, 8)), spec("mask", "bool", (-1, -1))),
    outputs=(spec("logits", "float32", (-1, 10)),),
)


def inputs(rows: int = 2, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs that fit, but for the changes."""
    return {"image": np.zeros((rows, 1, 8, 8), np.float32), "mask": np.zeros((rows, 5), bool), **changes}


def test_a_signature_survives_json() -> None:
    assert Signature.model_validate_json(SIGNATURE.model_dump_json()) == SIGNATURE


def test_a_signature_is_shown_in_one_line() -> None:
    assert str(SIGNATURE) == "image: float32[-1, 1, 8, 8], mask: bool[-1, -1] -> logits: float32[-1, 10]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float31"}, r"dtype 'float31' is none of bool, uint8,"),
        ({"dtype": "complex64"}, "dtype 'complex64' is none of"),
        ({"shape": ()}, r"shape \[\] must begin with -1, the batch"),
        ({"shape": (3, -1)}, r"shape \[3, -1\] must begin with -1, the batch"),
        ({"shape": (-1, 0)}, r"shape \[-1, 0\] has a dimension that is neither positive nor -1"),
        ({"shape": (-1, -2)}, "neither positive nor -1"),
        ({"shape": (-1, 1.5)}, "valid integer"),
        ({"layout": "NCHW"}, "Extra inputs are not permitted"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TensorSpec(**{"name": "x", "dtype": "float32", "shape": (-1, 3), **changes})


def test_a_spec_and_a_signature_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().dtype = "int8"
    with pytest.raises(ValidationError, match="frozen"):
        SIGNATURE.inputs = ()


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("specs", [(), (spec("x"), spec("y"), spec("x"))], ids=["none", "twice"])
def test_a_side_without_tensors_or_with_one_name_twice_is_refused(side: str, specs: tuple[TensorSpec, ...]) -> None:
    sides = {"inputs": (spec("x"),), "outputs": (spec("y"),), side: specs}
    with pytest.raises(ValidationError, match="needs at least one tensor, and distinct names"):
        Signature(**sides)


def test_every_dtype_has_a_name_in_the_protocol_and_is_known_to_numpy() -> None:
    for dtype, datatype in OIP_DATATYPES.items():
        assert spec(dtype=dtype).datatype == datatype
        assert np.dtype(dtype).name == dtype
    assert len(set(OIP_DATATYPES.values())) == len(OIP_DATATYPES)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((5, 3, 7), True), ((1, 3, 1), True), ((5, 4, 7), False), ((5, 3), False), ((5, 3, 7, 1), False), ((), False)],
)
def test_a_shape_fits_where_every_fixed_dimension_does(shape: tuple[int, ...], fits: bool) -> None:
    assert spec(shape=(-1, 3, -1)).matches(shape) is fits


@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_inputs_that_fit_pass(rows: int) -> None:
    SIGNATURE.check_inputs(inputs(rows))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((2, 1, 8, 8))}, "'image' must be float32; got float64."),
        ({"image": np.zeros((2, 1, 8, 9), np.float32)}, "'image' must have shape [-1, 1, 8, 8]; got [2, 1, 8, 9]."),
        ({"image": np.zeros((2, 64), np.float32)}, "'image' must have shape [-1, 1, 8, 8]; got [2, 64]."),
        ({"image": np.float32(0)}, "'image' must have shape [-1, 1, 8, 8]; got []."),
        ({"mask": np.zeros((2, 5), np.uint8)}, "'mask' must be bool; got uint8."),
        ({"mask": np.ones((3, 5), bool)}, "All inputs must have the same number of rows; got {'image': 2, 'mask': 3}."),
        ({"imgae": np.zeros(2)}, "Unknown input 'imgae'; known: image, mask."),
    ],
)
def test_inputs_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SignatureError) as caught:
        SIGNATURE.check_inputs(inputs(**changes))
    assert str(caught.value) == message


def test_a_missing_input_is_named_with_what_it_should_be() -> None:
    with pytest.raises(SignatureError, match=r"Missing input 'mask' \(bool, shape \[-1, -1\]\)\."):
        SIGNATURE.check_inputs({"image": inputs()["image"]})


def test_outputs_are_checked_as_outputs() -> None:
    SIGNATURE.check_outputs({"logits": np.zeros((2, 10), np.float32)})
    with pytest.raises(SignatureError, match=r"Missing output 'logits'"):
        SIGNATURE.check_outputs({})
    with pytest.raises(SignatureError, match=r"Unknown output 'image'; known: logits"):
        SIGNATURE.check_outputs(inputs())
    with pytest.raises(SignatureError, match=r"'logits' must have shape \[-1, 10\]; got \[2, 11\]"):
        SIGNATURE.check_outputs({"logits": np.zeros((2, 11), np.float32)})
