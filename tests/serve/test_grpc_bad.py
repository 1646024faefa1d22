"""What must be refused over gRPC: malformed messages, tensors that do not fit, messages that are too large."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from artifacts import one_tensor as signature
from grpc_calls import VALUES, Caller, Request, X, array_of, calling, infer_request, typed_x
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays
from serving import ANYBODY, GRAPHS, publish_all

from shipline.serve.errors import RequestError
from shipline.serve.grpc import service
from shipline.serve.grpc.infer import _CONTENTS, infer_response, parse_infer
from shipline.serve.http.body import MAX_BODY_BYTES
from shipline.serve.server import BackgroundServer
from shipline.signature import BYTES, DATATYPES, OIP_DATATYPES, Signature

INVALID = grpc.StatusCode.INVALID_ARGUMENT
IDS, KEEP = np.array([[1, 2, 3]]), np.array([[True, False, True]])


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A connection to a server with every kind of model."""
    repository = tmp_path_factory.mktemp("repository")
    publish_all(repository)
    with (
        BackgroundServer(str(repository), grpc_port=0, settings=ANYBODY) as server,
        calling(server.grpc_address) as caller,
    ):
        yield caller


def on_the_wire(request: Any) -> Any:
    """The request as the server reads it."""
    return Request.FromString(request.SerializeToString())


@pytest.mark.parametrize("dtype", OIP_DATATYPES)
@given(data=st.data())
@settings(max_examples=30, deadline=None, database=None)
def test_an_array_survives_the_way_in_and_out(dtype: str, data: st.DataObject) -> None:
    """Bit for bit where it is raw; typed contents hold the same numbers."""
    shapes = arrays.array_shapes(min_dims=1, max_dims=3, max_side=4)
    array = data.draw(arrays.arrays(dtype, shapes, elements=arrays.from_dtype(np.dtype(dtype))))
    spec = signature(dtype, *array.shape[1:])
    found = parse_infer(on_the_wire(infer_request("m", x=array)), spec)
    assert found.inputs["x"].tobytes() == array.tobytes()
    assert found.rows == len(array)
    answer = infer_response("m", "1", found, {"y": found.inputs["x"]}, spec)
    assert array_of(answer).tobytes() == array.tobytes()
    if dtype != "float16":
        request = infer_request("m", raw=False, x=array)
        getattr(request.inputs[0].contents, _CONTENTS[dtype]).extend(array.ravel().tolist())
        typed = parse_infer(on_the_wire(request), spec).inputs["x"]
        assert typed.dtype == array.dtype
        np.testing.assert_array_equal(typed, array)


def test_bytes_survive_the_way_in_and_out() -> None:
    spec = signature(BYTES, 2)
    array = np.array([[b"a\0b", "é".encode()], [b"", b"\xff\xfe"]], object)
    raw = infer_request("m", x=array)
    typed = infer_request("m", raw=False, x=array)
    typed.inputs[0].contents.bytes_contents.extend(array.ravel().tolist())
    for request in (raw, typed):
        found = parse_infer(on_the_wire(request), spec)
        assert found.inputs["x"].tolist() == array.tolist()
        answer = infer_response("m", "1", found, {"y": array}, spec)
        assert answer.raw_output_contents[0] == raw.raw_input_contents[0]
        assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [2, 2])


@pytest.mark.parametrize("dtype", DATATYPES)
@pytest.mark.parametrize("field", sorted(set(_CONTENTS.values())))
def test_typed_contents_lie_where_those_of_the_datatype_belong(dtype: str, field: str) -> None:
    request = infer_request("m", raw=False, x=np.zeros(1, dtype))
    getattr(request.inputs[0].contents, field).append(b"a" if field == "bytes_contents" else 1)
    right = _CONTENTS.get(dtype)
    if field == right:
        assert parse_infer(request, signature(dtype)).inputs["x"].dtype == dtype
        return
    says = f"belong in {right}; got {field}" if right else "FP16, which has no typed contents; send raw_input_contents"
    with pytest.raises(RequestError, match=says) as refusal:
        parse_infer(request, signature(dtype))
    assert refusal.value.status == 400


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "uint16"])
def test_typed_contents_are_not_cut_to_fit(dtype: str) -> None:
    limits = np.iinfo(dtype)
    for value, fits in ((int(limits.max), True), (int(limits.max) + 1, False)):
        request = infer_request("m", raw=False, x=np.zeros(1, dtype))
        getattr(request.inputs[0].contents, _CONTENTS[dtype]).append(value)
        if fits:
            assert parse_infer(request, signature(dtype)).inputs["x"].tolist() == [value]
        else:
            with pytest.raises(RequestError, match=f"out of range for {DATATYPES[dtype]}"):
                parse_infer(request, signature(dtype))


def test_not_a_number_and_infinities_are_taken() -> None:
    values = [float("nan"), float("inf"), float("-inf"), 0.0] * 2
    found = parse_infer(on_the_wire(typed_x(values=values)), GRAPHS["linear"].signature)
    np.testing.assert_array_equal(found.inputs["x"].ravel(), np.array(values, np.float32))


def test_typed_contents_are_answered_as_raw_ones_are(caller: Caller) -> None:
    raw, typed = caller.infer(infer_request("linear", x=X)), caller.infer(typed_x())
    assert raw.raw_output_contents == typed.raw_output_contents
    several = infer_request("masked", raw=False, ids=IDS, keep=KEEP)
    several.inputs[0].contents.int64_contents.extend([1, 2, 3])
    several.inputs[1].contents.bool_contents.extend([True, False, True])
    answer = caller.infer(several)
    assert array_of(answer, 0).tolist() == [[1, 0, 3]]
    assert array_of(answer, 1).tolist() == [[False, True, False]]


def changed(change: Callable[[Any], Any], request: Any = None) -> Any:
    """A good request for `linear`, but for this change."""
    request = infer_request("linear", x=X) if request is None else request
    change(request)
    return request


def shaped(*shape: int, model: str = "linear") -> Any:
    """A request whose shape is not that of its bytes."""

    def change(request: Any) -> None:
        request.inputs[0].shape[:] = shape
        request.model_name = model

    return changed(change)


def named(name: str) -> Any:
    return changed(lambda request: setattr(request.inputs[0], "name", name))


def of_datatype(datatype: str) -> Any:
    return changed(lambda request: setattr(request.inputs[0], "datatype", datatype))


BAD: list[tuple[str, Any, str]] = [
    *((f"shape {shape}", shaped(*shape), "whole numbers from 1") for shape in ((-2, 4), (2, 0), (0, 4), (-1, 4))),
    *(
        (f"shape {str(shape)[:30]}", shaped(*shape), r"Input 'x' must have shape \[-1, 4\]; got")
        for shape in ((), (8,), (2, 4, 1), (2, 5), (1,) * 1000, (2**4, 2**60 + 2), (2, 10**12))
    ),
    ("dimensions that wrap", shaped(2**4, 2**60 + 2, model="total"), "which takes 73786976294838206592"),
    ("rows that wrap", shaped(2**62, 4), "which takes 73786976294838206464"),
    ("a million million rows", shaped(10**12, 4), "has 32 bytes for shape"),
    ("more rows than a batch", infer_request("linear", x=np.ones((9, 4), np.float32)), "has 1 to 8 rows .* got 9"),
    ("no inputs", Request(model_name="linear"), r"Missing input 'x' \(FP32, shape \[-1, 4\]\)"),
    ("a missing input", infer_request("masked", ids=IDS), "Missing input 'keep'"),
    ("an extra input", infer_request("linear", x=X, u=X), "Unknown input 'u'; known: x"),
    ("an input given twice", changed(lambda r: (r.inputs.append(r.inputs[0]), r.raw_input_contents.append(b""))),
     "Input 'x' is given twice"),
    *((f"the name {name!r}", named(name), "Unknown input") for name in ("", "X", "../x")),
    ("a name that writes to a terminal", named("\x1b]0;x\x07\n"), r"Unknown input '\\x1b\]0;x\\x07\\n'"),
    ("a very long name", named("n" * 100_000), r"^Unknown input 'n{79}; known: x\.$"),
    *(
        (f"the datatype {datatype!r}", of_datatype(datatype), "Input 'x' must be FP32; got")
        for datatype in ("FP64", "fp32", "BYTES", "object", "")
    ),
    ("rows that differ", infer_request("masked", ids=np.ones((2, 3), np.int64), keep=KEEP), "same number of rows"),
    ("too few bytes", changed(lambda r: r.raw_input_contents.__setitem__(0, b"abc")), "has 3 bytes for shape"),
    ("bytes left over", changed(lambda r: r.raw_input_contents.__setitem__(0, bytes(33))), "has 33 bytes for shape"),
    ("a byte that is no truth", changed(lambda r: r.raw_input_contents.__setitem__(1, b"\x02\x00\x01"),
                                        infer_request("masked", ids=IDS, keep=KEEP)), "a byte other than 0 and 1"),
    ("too many raw tensors", changed(lambda r: r.raw_input_contents.append(b"")), "has 2 tensors for 1 inputs"),
    ("too few raw tensors", changed(lambda r: r.raw_input_contents.pop(), infer_request("masked", ids=IDS, keep=KEEP)),
     "has 1 tensors for 2 inputs"),
    ("both forms", changed(lambda r: r.inputs[0].contents.fp32_contents.extend(VALUES)), "both contents and raw_input"),
    ("neither form", infer_request("linear", raw=False, x=X), "has 0 values for shape"),
    *((f"{count} values", typed_x(values=(1.0,) * count), f"has {count} values for shape") for count in (1, 7, 9)),
    ("contents of another datatype", typed_x("fp64_contents"), "values belong in fp32_contents; got fp64_contents"),
    ("contents in two places", changed(lambda r: r.inputs[0].contents.int_contents.append(1), typed_x()),
     "belong in fp32_contents; got int_contents"),
    ("an unknown output", changed(lambda r: r.outputs.add(name="z")), "Unknown output 'z'; known: y"),
    ("shared memory", changed(lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "r")),
     "has the parameter 'shared_memory_region'"),
    ("a time of another kind", changed(lambda r: setattr(r.parameters["timeout"], "string_param", "1")),
     "The parameter 'timeout' must be a whole number from 0"),
    ("a priority below 0", changed(lambda r: setattr(r.parameters["priority"], "int64_param", -1)),
     "The parameter 'priority' must be a whole number from 0"),
]  # fmt: skip


@pytest.mark.parametrize(("request_", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_malformed_is_refused_and_changes_nothing(caller: Caller, request_: Any, says: str) -> None:
    caller.refused(request_, INVALID, says)
    caller.check_works()


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (struct.pack("<I", 1) + b"a", "5 bytes for 2 elements"),
        (struct.pack("<I", 1 << 31) + b"abcd", "ends within element 0 of 2"),
        (struct.pack("<I", 0) * 3, "4 bytes behind its 2 elements"),
    ],
)
def test_lengths_of_texts_that_do_not_add_up(raw: bytes, says: str) -> None:
    request = infer_request("m", raw=False, x=np.array([[b"", b""]], object))
    request.raw_input_contents.append(raw)
    with pytest.raises(RequestError, match=says):
        parse_infer(request, signature(BYTES, 2))


@pytest.mark.parametrize("name", ["", "../linear", "linear/1", "nobody", "\x1b[31m", "n" * 1000])
def test_models_that_are_not_here(caller: Caller, name: str) -> None:
    caller.refused(infer_request(name, x=X), grpc.StatusCode.NOT_FOUND, r"^There is no such model here\.$")
    caller.check_works()


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryIndex"])
@pytest.mark.parametrize("data", [b"\xff", b"\x80\x04", b'{"inputs": []}', b"\x0a\xff\xff\xff\xff\x0f"])
def test_bytes_that_are_no_message(caller: Caller, method: str, data: bytes) -> None:
    with pytest.raises(grpc.RpcError, match=f"The request is no valid {method}Request") as refusal:
        caller.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(data, timeout=30)
    assert refusal.value.code() is INVALID
    caller.check_works()


def test_nothing_but_this_service_is_there(caller: Caller) -> None:
    for path in ("/inference.GRPCInferenceService/Nonsense", "/other.Service/ModelInfer"):
        with pytest.raises(grpc.RpcError) as refusal:
            caller.channel.unary_unary(path)(b"", timeout=30)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("packed", [grpc.Compression.NoCompression, grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_that_is_too_large_is_refused(caller: Caller, packed: grpc.Compression) -> None:
    """However small it was made to travel."""
    request = infer_request("total", x=np.zeros((1, MAX_BODY_BYTES // 4), np.float32))
    caller.refused(request, grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max", compression=packed)
    caller.check_works()


def test_large_messages_are_parsed_beside_the_event_loop(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def seen(request: Any, signature: Signature) -> Any:
        threads.append(threading.current_thread().name)
        return parse_infer(request, signature)

    monkeypatch.setattr(service, "parse_infer", seen)
    for columns in (10, 100_000):
        request = infer_request("total", raw=False, x=np.ones((1, columns), np.float32))
        request.inputs[0].contents.fp32_contents.extend([1.0] * columns)
        assert array_of(caller.infer(request)).tolist() == [[columns]]
    small, large = threads
    assert small == "shipline-serve"
    assert large != small


def test_what_fails_by_itself_is_told_without_details(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    request = infer_request("lookup", index=np.array([99]))
    error = caller.refused(request, grpc.StatusCode.INTERNAL, r"^The model failed on this input\.$")
    identity = dict(error.trailing_metadata())["x-request-id"]
    assert f"Model 'lookup' failed on request {identity}" in caplog.text
    caller.check_works()
