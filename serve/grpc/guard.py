"""Who may call what: the same keys as over HTTP, in a call's metadata."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from shipline.serve.access import Access
from shipline.serve.errors import RequestError
from shipline.serve.grpc.codes import abort


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Stands before every method."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        """Return what answers the call, or what refuses it; nothing where there is no such method."""
        if (handler := await continuation(call)) is None:
            return None
        headers = [
            (name.encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in call.invocation_metadata
        ]
        try:
            # An address is not to be had here, so wrong keys are counted together.
            self._access.authorise([call.method.rpartition("/")[2]], headers, "grpc")
        except RequestError as error:
            return _refusing(error)
        return handler


def _refusing(error: RequestError) -> Any:
    async def refuse(request: Any, context: Any) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
