"""HTTP's statuses, which errors have here whatever the protocol, as gRPC's."""

from __future__ import annotations

from typing import Any

import grpc

from shipline.serve.errors import RequestError
from shipline.serve.http.endpoints import CANCELLED

_CODES = {
    200: grpc.StatusCode.OK,
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    CANCELLED: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def code_of(status: int) -> grpc.StatusCode:
    """Return gRPC's code for a status; INTERNAL for those that only a mistake of ours has."""
    return _CODES.get(status, grpc.StatusCode.INTERNAL)


async def abort(context: Any, error: RequestError) -> bytes:
    """End a call with the error; what HTTP has in headers comes as trailing metadata."""
    await context.abort(code_of(error.status), error.message, tuple(error.headers.items()))
    raise AssertionError("a call that was aborted goes on")
