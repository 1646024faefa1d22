"""An OpenTelemetry collector for tests: it takes spans by OTLP over HTTP, and keeps them."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from helpers import wait_until
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span:
    """A span, its attributes and its resource's as dicts."""

    def __init__(self, span: Any, resource: Any) -> None:
        self.span = span
        self.id, self.trace, self.parent = span.span_id.hex(), span.trace_id.hex(), span.parent_span_id.hex()
        self.name, self.kind = span.name, span.kind
        self.attributes, self.resource = values(span.attributes), values(resource.attributes)
        self.links = [link.span_id.hex() for link in span.links]


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


class Collector:
    """Listens while the block lasts."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.paths: set[str] = set()
        taking = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                taking.take(self.path, data)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, path: str, data: bytes) -> None:
        self.paths.add(path)
        for part in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.spans += [Span(span, part.resource) for scope in part.scope_spans for span in scope.spans]

    def named(self, name: str) -> list[Span]:
        """The spans with this name, in the order of their beginnings."""
        found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.span.start_time_unix_nano)

    def below(self, parent: Span) -> dict[str, Span]:
        """The spans that stand below this one, by name."""
        return {span.name: span for span in self.spans if span.parent == parent.id and span.trace == parent.trace}

    def wait_for(self, count: int, name: str) -> list[Span]:
        """The spans with this name, when there are so many."""
        wait_until(lambda: len(self.named(name)) >= count)
        return self.named(name)
