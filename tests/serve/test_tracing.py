"""OpenTelemetry's traces: what a request's spans tell, whose trace they continue, and who has none."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import artifacts
import pytest
from bad_requests import x
from collector import Collector, Span
from commands import serving
from grpc_calls import X, calling, infer_request
from helpers import free_port, wait_until
from serving import GRAPHS, connect, gated, post, publish_identity, receive, register_double, web

from shipline.errors import ConfigError, MissingExtraError
from shipline.serve.hosting import open_tracing
from shipline.serve.server import BackgroundServer, check
from shipline.serve.settings import ServerSettings

INFER = "/v2/models/linear/infer"
LONG = ("Content-Type: application/json; charset=utf-8",)  # which changes nothing but the way that a request takes
ROUTE = "POST /v2/models/{name}/infer"
METHOD = "inference.GRPCInferenceService/ModelInfer"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that is sent spans soon."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with Collector() as collector:
        yield collector


def test_every_way_continues_the_trace_of_its_sender(collector: Collector, tmp_path: Path) -> None:
    """The short way, the application's, gRPC; of any of the processes."""
    artifacts.publish(f"{tmp_path}/models/linear", GRAPHS["linear"])
    port = free_port()
    options = ("--workers", "2", "--grpc-port", str(port), "--otel", collector.url)
    with serving(tmp_path / "models", tmp_path / "log", *options) as process:
        for number in range(12):  # over connections of their own: both processes have some
            headers = (
                f"traceparent: {TRACEPARENT}",
                *(LONG if number % 2 else ()),
                *(("X-Request-Id: mine",) if number < 6 else ()),
            )
            with connect(process.url) as connection:
                connection.sendall(post(INFER, x(), *headers))
                assert receive(connection).status == 200
        with calling(f"127.0.0.1:{port}") as caller:
            caller.infer(infer_request("linear", x=X), metadata=(("traceparent", TRACEPARENT),))
        with connect(process.url) as connection:  # case 28: what is no traceparent is nobody's
            connection.sendall(post(INFER, x(data=[1]), f"traceparent: 00-{TRACE}-{PARENT}-zz"))
            assert receive(connection).status == 400
        process.popen.terminate()  # what has not been sent yet is sent at the end
        assert process.popen.wait(30) == 0, process.log.read_text()
    *good, bad = sorted(collector.named(ROUTE), key=lambda span: span.attributes["http.response.status_code"])
    (call,) = collector.named(METHOD)
    assert len(good) == 12
    for span in (*good, call):
        check_request(collector, span)
    assert {span.resource["service.name"] for span in good} == {"shipline"}
    assert collector.paths == {"/v1/traces"}
    assert good[0].attributes["url.path"] == INFER
    assert [span.attributes.get("shipline.request.id") for span in good].count("mine") == 6
    assert sum("shipline.request.id" in span.attributes for span in good) == 6  # and no empty one
    assert call.attributes["rpc.response.status_code"] == "OK"
    assert (bad.trace == TRACE, bad.parent, bad.attributes["http.response.status_code"]) == (False, "", 400)
    assert bad.span.status.code == 0  # it is the sender's mistake
    assert not collector.below(bad)


def check_request(collector: Collector, request: Span) -> None:
    """It stands in its sender's trace; its wait and its computation stand below it, one after the other."""
    assert (request.trace, request.parent, request.kind) == (TRACE, PARENT, 2)
    assert request.attributes["shipline.model.name"] == "linear"
    assert request.attributes["shipline.model.version"] == "1"
    assert request.attributes["shipline.rows"] == 2
    below = collector.below(request)
    queue, compute = below["queue"].span, below["compute"].span
    assert request.span.start_time_unix_nano <= queue.start_time_unix_nano + 10**6  # two clocks
    assert queue.start_time_unix_nano <= queue.end_time_unix_nano == compute.start_time_unix_nano
    assert compute.end_time_unix_nano <= request.span.end_time_unix_nano + 10**6


def test_a_batch_is_linked_with_all_its_requests(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that fails alone is the only error among them; one that leaves has an end, too."""
    register_double(monkeypatch)
    publish_identity(tmp_path / "gated")
    with BackgroundServer(str(tmp_path), settings=ServerSettings(otel=collector.url)) as server:
        held = gated(server._serving)
        path, late = "/v2/models/gated/infer", json.dumps(held.body(5.0)).encode()
        with connect(held.url) as connection:
            connection.sendall(post(path, late))  # from now on its Host is known
            assert receive(connection).status == 200
        held.wait_for(1)
        held.close_gate()
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(held.ask, 7.0)
            held.wait_for(1)
            assert held.backend.entered.wait(30)
            others = [pool.submit(held.ask, value) for value in (1.0, 2.0, -1.0)]
            held.wait_for(3)
            with connect(held.url) as leaver:
                leaver.sendall(post(path, late))
                held.wait_for(1)
            wait_until(lambda: held.batcher._waiting.rows == 3)
            held.backend.gate.set()
            assert first.result().status_code == 200
            assert sorted(other.result().status_code for other in others) == [200, 200, 500]
        requests = collector.wait_for(6, ROUTE)
        _, alone, joined = collector.wait_for(3, "batch")
    by_id = {request.id: request for request in requests}
    assert joined.attributes["shipline.requests"] == joined.attributes["shipline.rows"] == 3
    assert joined.parent in joined.links
    for link in joined.links:  # each of them leads there and back
        assert collector.below(by_id[link])["compute"].links == [joined.id]
    assert len(alone.links) == 1
    found = {request.attributes["http.response.status_code"]: request for request in requests}
    assert set(found) == {200, 499, 500}
    failed = found[500]
    assert (failed.span.status.code, failed.attributes["error.type"]) == (2, "500")
    assert len(failed.attributes["shipline.request.id"]) == 32  # what the client was told, and the log has


def test_a_collector_that_is_away_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("shipline.serve.tracing.CLOSE_S", 0.1)
    artifacts.publish(f"{tmp_path}/linear", GRAPHS["linear"])
    with BackgroundServer(str(tmp_path)) as server:
        assert server._serving._app.hosting.tracing is not None
        assert web.post(server.url + INFER, content=x()).status_code == 200


@pytest.mark.parametrize(
    ("variables", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318/v1/traces"}, True),
        ({"OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
    ],
)
def test_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], on: bool) -> None:
    if variables:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing = open_tracing(None)
    assert (tracing is not None) == on
    if tracing is not None:
        tracing.close()


def test_what_is_said_of_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("localhost:4318", "ftp://localhost", "http://", "http://[::1", "http://localhost:port"):
        with pytest.raises(
            ConfigError, match=rf"otel is {re.escape(wrong)}; give the collector's URL, such as http://"
        ):
            ServerSettings(otel=wrong)
    monkeypatch.delitem(sys.modules, "shipline.serve.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.context", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'shipline\[otel\]'"):
        open_tracing("http://localhost:4318")
    with pytest.raises(MissingExtraError, match=r"pip install 'shipline\[otel\]'"):  # `shipline up` trains after this
        check(ServerSettings(otel="http://localhost:4318"), ())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    assert open_tracing(None) is None  # whoever set it may have meant others
