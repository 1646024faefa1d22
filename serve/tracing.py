"""OpenTelemetry's traces of predictions: the request, its wait, and the batch that it was computed in.

A request's span continues the trace that its sender began (W3C's traceparent), or begins one. Below it stand how long
its rows waited, and how long they were computed. That is linked to the batch's span, which stands below the first of
the batch's requests, and is linked to all of them. Metadata, health and loading have no spans.

This module alone imports OpenTelemetry, and nobody imports it unless traces are asked for.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import shipline
from shipline.serve.jobs import Job

_SCHEMA = "https://opentelemetry.io/schemas/1.41.0"
_UNKNOWN = "unknown_service"
CLOSE_S = 5.0
_W3C = TraceContextTextMapPropagator()
_CARRIED = {name: name.encode() for name in ("traceparent", "tracestate")}


class RequestTrace:
    """The span of one request."""

    __slots__ = ("_code", "_span", "rows")

    def __init__(self, span: Span, code: str) -> None:
        self._span, self._code = span, code
        self.rows = 0

    @property
    def below(self) -> Context:
        """Where spans belong that stand below it."""
        return set_span_in_context(self._span, Context())

    @property
    def linked(self) -> SpanContext:
        """What links point to."""
        return self._span.get_span_context()

    def end(self, status: int, said: int | str, identity: str = "") -> None:
        """End it.

        Args:
            status: as HTTP has them; those from 500 on are errors of the server's.
            said: the status, in the protocol's own words.
            identity: what the client was told to ask about this request with; "" is nothing.
        """
        span = self._span
        span.set_attribute(self._code, said)
        span.set_attribute("shipline.rows", self.rows)
        if identity:
            span.set_attribute("shipline.request.id", identity)
        if status >= 500:
            span.set_attribute("error.type", str(said))
            span.set_status(Status(StatusCode.ERROR))
        span.end()


class Tracing:
    """Makes the spans of one process.

    Args:
        provider: where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("shipline.serve", shipline.__version__, schema_url=_SCHEMA)

    @classmethod
    def exporting(cls, url: str | None) -> Self:
        """Return what sends the spans to a collector, in batches, by OTLP over HTTP.

        Args:
            url: of the collector, without /v1/traces; None is the one in OpenTelemetry's environment variables. These
                say all else, too: headers, sampler, service name.
        """
        exporter = OTLPSpanExporter(None if url is None else f"{url.rstrip('/')}/v1/traces")
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def for_model(self, name: str, version: str) -> ModelTracing:
        """Return what makes the spans of one version of a model."""
        return ModelTracing(self._tracer, {"shipline.model.name": name, "shipline.model.version": version})

    def close(self) -> None:
        """Send what is left, for some seconds at most: a collector that is gone does not keep the process."""
        closing = threading.Thread(target=self._provider.shutdown, name="shipline-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_S)


class ModelTracing:
    """Makes the spans of one version of a model."""

    def __init__(self, tracer: Tracer, model: dict[str, str]) -> None:
        self._tracer = tracer
        self._model = model

    def http(self, route: str, headers: Mapping[bytes, bytes], scope: Mapping[str, Any]) -> RequestTrace | None:
        """Begin the span of a request over HTTP; None where it is not sampled.

        Args:
            route: the path, with {name} and {version} for what they are.
            headers: of the request.
            scope: of the request, or as much of one as there is: path, scheme, http_version, client.
        """
        attributes = {
            "http.request.method": "POST",
            "http.route": route,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
        }
        if scope["client"]:
            attributes["client.address"] = scope["client"][0]
        carrier = {name: headers[key].decode("latin-1") for name, key in _CARRIED.items() if key in headers}
        return self._begin(f"POST {route}", attributes, carrier, "http.response.status_code")

    def grpc(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> RequestTrace | None:
        """Begin the span of a call, with these metadata, to a method (service/name); None where it is not sampled."""
        carrier = {name: value for name, value in metadata if name in _CARRIED and isinstance(value, str)}
        attributes = {"rpc.system.name": "grpc", "rpc.method": method}
        return self._begin(method, attributes, carrier, "rpc.response.status_code")

    def batch(self, jobs: list[Job], began: float, ended: float) -> None:
        """Tell of a batch that ran, in the traces of its requests.

        Args:
            jobs: that were in it.
            began: when they had waited, by the performance counter.
            ended: when they were computed.
        """
        traced = [(job, trace) for job in jobs if isinstance(trace := job.terms.trace, RequestTrace)]
        if not traced:
            return
        epoch = time.time_ns() - int(time.perf_counter() * 1e9)
        start, end = epoch + int(began * 1e9), epoch + int(ended * 1e9)
        own = self._tracer.start_span(
            "batch",
            traced[0][1].below,
            links=[Link(trace.linked) for _, trace in traced],
            attributes={**self._model, "shipline.rows": sum(job.rows for job in jobs), "shipline.requests": len(jobs)},
            start_time=start,
        )
        own.end(end)
        links = [Link(own.get_span_context())]
        for job, trace in traced:
            trace.rows += job.rows
            rows, queued = {"shipline.rows": job.rows}, epoch + int(job.queued_at * 1e9)
            self._tracer.start_span("queue", trace.below, attributes=rows, start_time=queued).end(start)
            self._tracer.start_span("compute", trace.below, attributes=rows, links=links, start_time=start).end(end)

    def _begin(
        self, name: str, attributes: Mapping[str, str], carrier: dict[str, str], code: str
    ) -> RequestTrace | None:
        context = _W3C.extract(carrier, context=Context())  # what is malformed is taken for nothing
        span = self._tracer.start_span(name, context, SpanKind.SERVER, {**attributes, **self._model})
        return RequestTrace(span, code) if span.is_recording() else None


def _resource() -> Resource:
    """Return who sends the spans: as the environment says, else Shipline."""
    found = Resource.create({"process.pid": os.getpid(), "service.version": shipline.__version__})
    if str(found.attributes.get(SERVICE_NAME, _UNKNOWN)).startswith(_UNKNOWN):
        found = found.merge(Resource({SERVICE_NAME: "shipline"}))
    return found
