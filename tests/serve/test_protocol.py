"""The Open Inference Protocol v2 in JSON: what is taken, what is refused, and numbers that survive the way."""

from __future__ import annotations

import json
import re
from typing import Any

import artifacts
import numpy as np
import orjson
import pytest
from artifacts import one_tensor as signature
from bad_requests import BAD, GOOD_IDS, GOOD_KEEP, GOOD_X, Bad, deep, nested, request, x
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from shipline.serve.errors import RequestError
from shipline.serve.http.document import LARGE_BYTES, MAX_DEPTH, parse_json, parse_tensors
from shipline.serve.http.infer import InferRequest, infer_response, parse_infer, predict_response
from shipline.signature import OIP_DATATYPES

GRAPHS = {"linear": artifacts.linear(), "masked": artifacts.masked(), "total": artifacts.total()}
LINEAR, MASKED = GRAPHS["linear"].signature, GRAPHS["masked"].signature


def body(dtype: str, shape: list[int], data: Any) -> bytes:
    return request({"name": "x", "shape": shape, "datatype": OIP_DATATYPES[dtype], "data": data})


# Large bodies are read by another parser; blanks before the end of the document make one large.
small_and_large = pytest.mark.parametrize("blanks", [0, LARGE_BYTES], ids=["small", "large"])


def padded(body: bytes, blanks: int) -> bytes:
    """The body, with blanks behind the document, where JSON allows them."""
    return body + b" " * blanks


@small_and_large
@pytest.mark.parametrize("case", BAD, ids=[case.name for case in BAD])
def test_a_bad_request_is_refused_and_says_why(case: Bad, blanks: int) -> None:
    with pytest.raises(RequestError) as caught:
        parse_infer(padded(case.body, blanks), GRAPHS[case.model].signature)
    assert caught.value.status == 400
    assert re.search(case.says, caught.value.message)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@small_and_large
def test_the_good_requests_that_the_bad_ones_are_made_of_are_good(blanks: int) -> None:
    """Otherwise each could be refused for another reason than its own."""
    assert parse_infer(padded(x(), blanks), LINEAR).inputs["x"].tolist() == [[1, 2.5, -3, 4], [5, 6, 7, 8]]
    found = parse_infer(padded(request(GOOD_IDS, GOOD_KEEP), blanks), MASKED)
    assert (found.inputs["ids"].tolist(), found.inputs["keep"].tolist()) == ([[1, 2, 3]], [[True, False, True]])
    assert (found.rows, found.id, found.outputs) == (1, None, ["kept", "dropped"])


@pytest.mark.parametrize(
    "data",
    [[1, 2.5, -3, 4, 5, 6, 7, 8], [[1, 2.5, -3, 4], [5, 6, 7, 8]]],
    ids=["flat", "nested"],
)
def test_data_is_taken_flat_and_nested(data: list[Any]) -> None:
    found = parse_infer(x(data=data), LINEAR)
    assert found.inputs["x"].dtype == np.float32
    assert found.inputs["x"].tolist() == [[1, 2.5, -3, 4], [5, 6, 7, 8]]
    assert found.rows == 2


def test_inputs_come_in_any_order() -> None:
    one, other = parse_infer(request(GOOD_IDS, GOOD_KEEP), MASKED), parse_infer(request(GOOD_KEEP, GOOD_IDS), MASKED)
    for name in ("ids", "keep"):
        np.testing.assert_array_equal(one.inputs[name], other.inputs[name])


@pytest.mark.parametrize(
    ("outputs", "chosen"),
    [
        (None, ["kept", "dropped"]),
        ([], ["kept", "dropped"]),
        ([{"name": "dropped"}], ["dropped"]),
        ([{"name": "dropped", "parameters": {"binary_data": False}}, {"name": "kept"}], ["dropped", "kept"]),
    ],
)
def test_outputs_are_chosen(outputs: Any, chosen: list[str]) -> None:
    assert parse_infer(request(GOOD_IDS, GOOD_KEEP, outputs=outputs), MASKED).outputs == chosen


@pytest.mark.parametrize("value", ["", "a", 'é\u0000\n"\\', "x" * 10_000, "\U0001f600"])
def test_the_id_comes_back_as_it_was(value: str) -> None:
    found = parse_infer(x()[:-1] + b', "id": ' + json.dumps(value).encode() + b"}", LINEAR)
    assert answered(found, {"y": np.zeros((2, 3), np.float32)})["id"] == value


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "UINT8", "BOOL", "BYTES", "X", None, 7])
@pytest.mark.parametrize(
    "data", [[1, 2], [1.5, -2], [-1, 2**63], [[1], [2]], [], [True], ["a"], [None], [1, "a"], {}, "x", None, 3]
)
def test_both_parsers_find_the_same_document(datatype: Any, data: Any) -> None:
    """But for flat lists of numbers, of which the one for large bodies makes arrays."""
    item = {"name": "x", "shape": [2], "datatype": datatype, "data": data, "parameters": {"a": [1]}}
    for inputs in ([item], [item, item], [1, item], [[item]], item, [], None):
        text = json.dumps({"id": "i", "inputs": inputs, "outputs": [{"name": "y"}], "parameters": {}}).encode()
        large = parse_tensors(padded(text, LARGE_BYTES))
        for tensor in large["inputs"] if isinstance(inputs, list) else []:
            if isinstance(tensor, dict) and isinstance(tensor["data"], np.ndarray):
                tensor["data"] = tensor["data"].tolist()
        assert large == parse_json(text)


def test_of_equal_names_the_last_counts_for_both_parsers() -> None:
    text = b'{"inputs": [{"data": [1, 2], "data": [3, 4]}], "id": "a", "id": "b"}'
    assert parse_tensors(padded(text, LARGE_BYTES)) == parse_json(text)
    assert parse_json(text)["id"] == "b"


def test_without_an_id_none_comes_back() -> None:
    assert "id" not in answered(parse_infer(x(), LINEAR), {"y": np.zeros((2, 3), np.float32)})


def test_parameters_that_change_nothing_are_let_through() -> None:
    parameters = {"priority": 1, "timeout": 10**9, "note": "x", "none": None}
    found = parse_infer(request(GOOD_X | {"parameters": {"a": 1.5}}, parameters=parameters), LINEAR)
    assert found.rows == 2


@pytest.mark.parametrize("levels", [3, 50, MAX_DEPTH, MAX_DEPTH + 1, MAX_DEPTH + 2, 120, 1000, 250_000])
@pytest.mark.parametrize("kind", ["lists", "objects", "both", "behind many shallow ones"])
def test_json_may_be_a_hundred_levels_deep_and_no_deeper(kind: str, levels: int) -> None:
    text = {
        "lists": nested(levels),
        "objects": b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1),
        "both": b'[{"a":' * (levels // 2) + (b"[]" if levels % 2 else b"1") + b"}]" * (levels // 2),
        "behind many shallow ones": b'{"a":' + b"[" * (levels - 2) + b"{}," * 200 + b"1" + b"]" * (levels - 2) + b"}",
    }[kind]
    if levels <= MAX_DEPTH:
        parse_json(text)
    else:
        with pytest.raises(RequestError, match=r"nested more than 100 levels deep|is no valid JSON") as caught:
            parse_json(text)
        assert caught.value.status == 400


def test_a_shallow_document_may_hold_many_lists() -> None:
    assert parse_json(b"[" + b"[1]," * 10_000 + b"[]]")[0] == [1]
    assert parse_json(orjson.dumps({"text": "[" * 500})) == {"text": "[" * 500}


@pytest.mark.parametrize("place", deep(2))
def test_the_deep_requests_are_json_but_for_their_depth(place: str) -> None:
    parse_json(deep(2)[place])


# dtype -> what fits at both ends, and what does not
RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "int8": ([-128, 127], [-129, 128, 300]),
    "int16": ([-(2**15), 2**15 - 1], [-(2**15) - 1, 2**15]),
    "int32": ([-(2**31), 2**31 - 1], [-(2**31) - 1, 2**31]),
    "int64": ([-(2**63), 2**63 - 1], [2**63, 2**64 - 1, 2**64, -(2**63) - 1]),
    "uint8": ([0, 255], [-1, 256]),
    "uint16": ([0, 2**16 - 1], [-1, 2**16]),
    "uint32": ([0, 2**32 - 1], [-1, 2**32]),
    "uint64": ([0, 2**64 - 1], [-1, 2**64, -(2**63)]),
    "float16": ([-65504, 65504, 1, 0.5], [65536, 1e5, -1e39]),
    "float32": ([-3.4028235e38, 3.4028235e38, 2**64 - 1], [3.5e38, -1e39, 1e308]),
    "float64": ([-1.7976931348623157e308, 5e-324, 2**64 - 1], []),
    "bool": ([True, False], [0, 1]),
}


@small_and_large
@pytest.mark.parametrize(("dtype", "value"), [(dtype, value) for dtype, (good, _) in RANGES.items() for value in good])
def test_values_at_the_ends_of_the_range_are_exact(dtype: str, value: Any, blanks: int) -> None:
    found = parse_infer(padded(body(dtype, [2], [value, value]), blanks), signature(dtype)).inputs["x"]
    assert found.dtype == np.dtype(dtype)
    assert found.tolist() == np.array([value, value], dtype).tolist()


@small_and_large
@pytest.mark.parametrize(("dtype", "value"), [(dtype, value) for dtype, (_, bad) in RANGES.items() for value in bad])
def test_values_outside_of_the_range_are_refused(dtype: str, value: Any, blanks: int) -> None:
    with pytest.raises(RequestError, match=r"out of range for|among its values") as caught:
        parse_infer(padded(body(dtype, [2], [RANGES[dtype][0][0], value]), blanks), signature(dtype))
    assert caught.value.status == 400


def test_every_dtype_has_its_range_tested() -> None:
    assert set(RANGES) == set(OIP_DATATYPES)


def test_minus_zero_is_a_number() -> None:
    assert parse_infer(b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[-0]}]}', signature("int64"))
    found = parse_infer(b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[-0.0]}]}', signature("float32"))
    assert np.signbit(found.inputs["x"]).all()


SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)


def elements(dtype: str) -> st.SearchStrategy[Any]:
    return arrays.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("dtype", OIP_DATATYPES)
@given(data=st.data())
@settings(max_examples=50, deadline=None, database=None)
def test_an_array_survives_the_way_in(dtype: str, data: st.DataObject) -> None:
    """Flat and nested, and through a signature of fixed sizes and of free ones."""
    array = data.draw(arrays.arrays(dtype, SHAPES, elements=elements(dtype)))
    fixed = signature(dtype, *array.shape[1:])
    free = signature(dtype, *(-1 for _ in array.shape[1:]))
    for values in (array.tolist(), array.ravel().tolist()):
        for expected in (fixed, free):
            found = parse_infer(body(dtype, list(array.shape), values), expected)
            assert found.inputs["x"].dtype == array.dtype
            np.testing.assert_array_equal(found.inputs["x"], array)
            assert found.rows == len(array)


@pytest.mark.parametrize("dtype", OIP_DATATYPES)
@given(data=st.data())
@settings(max_examples=50, deadline=None, database=None)
def test_an_array_survives_the_way_out(dtype: str, data: st.DataObject) -> None:
    """Also where it lies in memory with gaps, or in another order; NaN and infinities are null."""
    array = data.draw(arrays.arrays(dtype, SHAPES, elements=arrays.from_dtype(np.dtype(dtype))))
    view = data.draw(st.sampled_from([array, np.asfortranarray(array), np.repeat(array, 2, axis=-1)[..., ::2]]))
    spec = signature(dtype, *array.shape[1:])
    request = InferRequest(None, {}, len(array), ["y"])
    document = strictly(infer_response("m", "1", request, {"y": view}, spec)[0])
    (tensor,) = document["outputs"]
    assert (tensor["name"], tensor["shape"], tensor["datatype"]) == ("y", list(array.shape), OIP_DATATYPES[dtype])
    if np.dtype(dtype).kind == "f":
        expected = [value if np.isfinite(value) else None for value in array.ravel().tolist()]
        found = np.array(tensor["data"], dtype)
        np.testing.assert_array_equal(found, np.array(expected, dtype))
        assert [value is None for value in tensor["data"]] == [value is None for value in expected]
    else:
        assert tensor["data"] == array.ravel().tolist()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_json_cannot_hold_is_null(dtype: str) -> None:
    outputs = {"y": np.array([np.nan, np.inf, -np.inf, 1.5], dtype)}
    text, _ = infer_response("m", "1", InferRequest(None, {}, 4, ["y"]), outputs, signature(dtype))
    assert strictly(text)["outputs"][0]["data"] == [None, None, None, 1.5]


def test_the_response_names_model_and_version_and_holds_the_chosen_outputs_in_the_models_order() -> None:
    outputs = {"kept": np.array([[1, 0, 3]]), "dropped": np.array([[False, True, False]])}
    kept = {"name": "kept", "datatype": "INT64", "shape": [1, 3], "data": [1, 0, 3]}
    dropped = {"name": "dropped", "datatype": "BOOL", "shape": [1, 3], "data": [False, True, False]}
    for names, expected in (
        (["dropped", "kept", "dropped"], [kept, dropped]),
        (["dropped"], [dropped]),
        (["kept"], [kept]),
    ):
        chosen = [{"name": name} for name in names]
        found = parse_infer(request(GOOD_IDS, GOOD_KEEP, id="7", outputs=chosen), MASKED)
        document = strictly(infer_response("m", "12", found, outputs, MASKED)[0])
        assert document == {"model_name": "m", "model_version": "12", "id": "7", "outputs": expected}


@pytest.mark.parametrize(
    ("answer", "fields"),
    [
        ({"label": "a", "score": 0.5}, {"label": "a", "score": 0.5}),
        ([1.5, 2.5], {"output": [1.5, 2.5]}),
        (3, {"output": 3}),
    ],
)
def test_the_response_to_a_raw_input_is_an_object(answer: Any, fields: dict[str, Any]) -> None:
    assert predict_response("m", "1", answer) == {"model_name": "m", "model_version": "1", **fields}


def answered(found: InferRequest, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    return strictly(infer_response("m", "1", found, outputs, LINEAR)[0])


def strictly(text: bytes) -> Any:
    """Parse with a parser that knows no bare NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)
