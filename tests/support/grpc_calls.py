"""Calls over gRPC with the messages that the server itself reads."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from doubles import WAIT_S
from serving import GRAPHS, LEAKS

from shipline.serve.grpc import messages
from shipline.serve.tensors import to_raw
from shipline.signature import DATATYPES

Request = messages.message("ModelInferRequest")
X = np.array([[1, 2, 3, 4], [0.5, -1, 0, 2]], np.float32)
VALUES = tuple(X.ravel().tolist())


def infer_request(model: str, *, raw: bool = True, **arrays: np.ndarray) -> Any:
    """A ModelInferRequest for these inputs: as raw bytes, or described only."""
    request = Request(model_name=model)
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        if raw:
            request.raw_input_contents.append(bytes(to_raw(array)))
    return request


def typed_x(field: str = "fp32_contents", values: Any = VALUES) -> Any:
    """A ModelInferRequest for `linear` with these typed contents."""
    request = infer_request("linear", raw=False, x=X)
    getattr(request.inputs[0].contents, field).extend(values)
    return request


def array_of(response: Any, number: int = 0) -> np.ndarray:
    """One of a response's outputs; of numbers."""
    output = response.outputs[number]
    dtype = next(name for name, datatype in DATATYPES.items() if datatype == output.datatype)
    return np.frombuffer(response.raw_output_contents[number], dtype).reshape(list(output.shape))


class Caller:
    """A connection."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def method(self, name: str) -> grpc.UnaryUnaryMultiCallable:
        """A method that takes one message and gives one."""
        takes, gives = messages.method(name)
        return self.channel.unary_unary(f"/{messages.SERVICE}/{name}", takes.SerializeToString, gives.FromString)

    def call(self, name: str, /, **fields: Any) -> Any:
        """Call it, and return the response."""
        return self.method(name)(messages.method(name)[0](**fields), timeout=WAIT_S)

    def infer(self, request: Any, **options: Any) -> Any:
        """The response to a ModelInferRequest."""
        return self.method("ModelInfer")(request, **{"timeout": WAIT_S, **options})

    def later(self, request: Any, **options: Any) -> grpc.Future:
        """The response to a ModelInferRequest, when it comes."""
        return self.method("ModelInfer").future(request, **{"timeout": WAIT_S, **options})

    def stream(self, requests: Iterator[Any]) -> Any:
        """The responses to a stream of ModelInferRequests."""
        takes, gives = messages.method("ModelStreamInfer")
        path = f"/{messages.SERVICE}/ModelStreamInfer"
        return self.channel.stream_stream(path, takes.SerializeToString, gives.FromString)(requests, timeout=WAIT_S)

    def check_works(self) -> None:
        """The server is ready, and its numbers are right."""
        assert self.call("ServerReady").ready
        found = array_of(self.infer(infer_request("linear", x=X)))
        np.testing.assert_allclose(found, GRAPHS["linear"].function({"x": X})["y"], rtol=1e-5)

    def refused(self, request: Any, code: grpc.StatusCode, says: str, **options: Any) -> grpc.RpcError:
        """Send a ModelInferRequest that must be refused with this code and text."""
        with pytest.raises(grpc.RpcError) as refusal:
            self.infer(request, **options)
        check_refusal(refusal.value, code, says)
        return refusal.value


def check_refusal(error: Any, code: grpc.StatusCode, says: str) -> None:
    """It has this code and text, and nothing that tells of the server."""
    assert error.code() is code, error
    assert re.search(says, error.details()), error.details()
    assert not LEAKS.search(f"{error.details()}{error.trailing_metadata()}")


@contextlib.contextmanager
def calling(address: str | None) -> Iterator[Caller]:
    """A connection to a server; larger messages than the server takes may be sent."""
    assert address is not None
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield Caller(channel)
