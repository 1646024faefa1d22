"""gRPC's server beside that of HTTP: many clients at once, who leaves and who has to wait; how it starts and stops."""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import artifacts
import grpc
import numpy as np
import pytest
from commands import serve_fails, serving
from doubles import POISON, WAIT_S
from grpc_calls import Caller, X, array_of, calling, check_refusal, infer_request
from helpers import listens, wait_until
from serving import ANYBODY, GRAPHS, Gated, check_works, gated_server, web

from shipline.errors import MissingExtraError, ServingError
from shipline.serve.server import BackgroundServer, Serving

CLIENTS = 8
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one model."""
    artifacts.publish(f"{tmp_path}/models/linear", artifacts.linear())
    return tmp_path / "models"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    """A server whose batches wait at a gate."""
    with gated_server(tmp_path, monkeypatch, grpc_port=0) as server:
        yield server


@pytest.fixture
def caller(server: Gated) -> Iterator[Caller]:
    """A connection to it."""
    with calling(server.serving.grpc_address) as caller:
        yield caller


def row(value: float, **fields: Any) -> Any:
    """A request of one row."""
    request = infer_request("gated", x=np.array([[value]], np.float32))
    request.id = str(value)
    return request


def occupy(server: Gated, caller: Caller) -> grpc.Future:
    """Close the gate behind one request, so that what is asked next makes one batch."""
    server.close_gate()
    first = caller.later(row(100))
    server.wait_for(1)
    assert server.backend.entered.wait(WAIT_S)
    return first


def waiting(server: Gated) -> int:
    """How many rows wait."""
    return server.serving._app.repository.get("gated")._batcher._waiting.rows


def ran(server: Gated) -> set[float]:
    """The rows that reached the backend."""
    return {float(value) for batch in server.backend.batches for value in batch["x"].ravel()}


def check_row(answer: grpc.Future, value: float) -> None:
    assert array_of(answer.result(WAIT_S)).tolist() == [[value]]


@pytest.mark.parametrize("index", [0, 3, CLIENTS - 1])
def test_one_bad_row_among_eight_clients_fails_alone(server: Gated, caller: Caller, index: int) -> None:
    first = occupy(server, caller)
    asked = [caller.later(row(POISON if number == index else number)) for number in range(CLIENTS)]
    server.wait_for(CLIENTS)
    server.backend.gate.set()
    for number, answer in enumerate(asked):
        if number == index:
            check_refusal(answer.exception(WAIT_S), grpc.StatusCode.INTERNAL, r"^The model failed on this input\.$")
        else:
            check_row(answer, number)
    check_row(first, 100)
    assert CLIENTS in server.backend.sizes  # they were one batch


def test_clients_of_both_protocols_share_a_batch(server: Gated, caller: Caller) -> None:
    first = occupy(server, caller)
    with ThreadPoolExecutor(1) as pool:
        over_http, over_grpc = pool.submit(server.ask, 1), caller.later(row(2))
        server.wait_for(2)
        server.backend.gate.set()
        assert over_http.result().json()["outputs"][0]["data"] == [1]
    check_row(over_grpc, 2)
    check_row(first, 100)
    assert server.backend.sizes[-1] == 2


def test_a_call_that_is_cancelled_is_left_out(server: Gated, caller: Caller) -> None:
    first = occupy(server, caller)
    left, stays = caller.later(row(50)), caller.later(row(2))
    server.wait_for(2)
    left.cancel()
    wait_until(lambda: waiting(server) == 1)
    server.backend.gate.set()
    check_row(first, 100)
    check_row(stays, 2)
    assert 50 not in ran(server)
    said = web.get(f"{server.url}/metrics").text
    assert 'shipline_requests_total{endpoint="grpc",model="gated",status="499",version="1"} 1.0' in said


def test_a_call_whose_deadline_passes_is_left_out(server: Gated, caller: Caller) -> None:
    first = occupy(server, caller)
    late, stays = caller.later(row(50), timeout=1), caller.later(row(2))
    server.wait_for(2)
    assert late.exception(WAIT_S).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: waiting(server) == 1)
    server.backend.gate.set()
    check_row(first, 100)
    check_row(stays, 2)
    assert 50 not in ran(server)


def test_the_time_that_a_request_itself_gives(server: Gated, caller: Caller) -> None:
    first = occupy(server, caller)
    request = row(50)
    request.parameters["timeout"].int64_param = 50_000
    late = caller.later(request)
    server.wait_for(1)
    check_refusal(late.exception(WAIT_S), grpc.StatusCode.DEADLINE_EXCEEDED, "")
    server.backend.gate.set()
    check_row(first, 100)
    assert 50 not in ran(server)


def test_too_many_waiting(server: Gated, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    first = occupy(server, caller)
    monkeypatch.setattr(server.serving._app.repository.get("gated")._batcher, "_max_queued", 1)
    second = caller.later(row(1))
    server.wait_for(1)
    error = caller.refused(row(2), UNAVAILABLE, "Too many requests are waiting")
    assert dict(error.trailing_metadata())["retry-after"] == "1"
    server.backend.gate.set()
    check_row(first, 100)
    check_row(second, 1)


def test_requests_of_a_stream_are_in_work_together_and_answered_in_order(server: Gated, caller: Caller) -> None:
    first = occupy(server, caller)
    answers = caller.stream(row(POISON if number == 2 else number) for number in range(20))
    server.wait_for(8)  # of twenty; the others are not read yet
    assert waiting(server) == 8
    server.backend.gate.set()
    for number, answer in enumerate(answers):
        if number == 2:
            assert answer.error_message == "The model failed on this input."
            assert answer.infer_response.id == str(POISON)
        else:
            assert array_of(answer.infer_response).tolist() == [[number]]
            assert answer.infer_response.id == str(number)
            assert answer.infer_response.parameters["triton_final_response"].bool_param
    check_row(first, 100)


def test_a_stream_that_is_cancelled_leaves_nothing_behind(server: Gated, caller: Caller) -> None:
    first = occupy(server, caller)
    stream = caller.stream(row(50 + number) for number in range(20))
    server.wait_for(8)
    stream.cancel()
    wait_until(lambda: waiting(server) == 0)
    server.backend.gate.set()
    check_row(first, 100)
    check_row(caller.later(row(7)), 7)
    assert ran(server) == {1, 2, 100, 7}  # 1 and 2 are golden rows


def test_sixty_four_clients_get_their_own_answers(repository: Path) -> None:
    with (
        BackgroundServer(str(repository), grpc_port=0, settings=ANYBODY) as server,
        calling(server.grpc_address) as caller,
    ):
        asked = [caller.later(infer_request("linear", x=X * number)) for number in range(64)]
        for number, answer in enumerate(asked):
            expected = GRAPHS["linear"].function({"x": X * number})["y"]
            np.testing.assert_allclose(array_of(answer.result(WAIT_S)), expected, rtol=1e-4, atol=1e-5)


def test_readiness_goes_off_before_anything_is_refused(repository: Path) -> None:
    with (
        BackgroundServer(str(repository), grpc_port=0, settings=ANYBODY) as server,
        calling(server.grpc_address) as caller,
    ):
        assert caller.call("ModelReady", name="linear").ready
        server._serving._app.stopping = True
        assert caller.call("ServerLive").live
        assert not caller.call("ServerReady").ready
        assert not caller.call("ModelReady", name="linear").ready
        caller.infer(infer_request("linear", x=X))


def test_what_was_accepted_is_answered_before_the_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New calls are refused from the start; a stream that is open ends when what it was asked is answered."""
    with gated_server(tmp_path, monkeypatch, grpc_port=0) as server, calling(server.serving.grpc_address) as caller:
        accepted = occupy(server, caller)
        requests: queue.Queue[Any] = queue.Queue()
        stream = caller.stream(iter(requests.get, None))
        requests.put(row(1))
        server.wait_for(1)
        port = int(str(server.serving.grpc_address).rpartition(":")[2])
        server.serving.stop()
        wait_until(lambda: not listens(port))
        with calling(server.serving.grpc_address) as other:
            other.refused(row(2), UNAVAILABLE, "")
        assert not accepted.done()
        server.backend.gate.set()
        check_row(accepted, 100)
        assert array_of(next(stream).infer_response).tolist() == [[1]]
        with pytest.raises(grpc.RpcError, match=r"The server is stopping\.") as ended:
            next(stream)
        assert ended.value.code() is UNAVAILABLE
        requests.put(None)


def test_the_grace_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated_server(tmp_path, monkeypatch, grpc_port=0) as server, calling(server.serving.grpc_address) as caller:
        monkeypatch.setattr(server.serving._grpc, "_grace_s", 0.1)
        accepted = occupy(server, caller)
        server.serving.stop()
        assert accepted.exception(WAIT_S).code() in (UNAVAILABLE, grpc.StatusCode.CANCELLED)
        server.backend.gate.set()


def test_from_the_command_line_until_a_signal(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path / "log", "--grpc-port", "0") as process:
        line = next(line for line in process.log.read_text().splitlines() if "Serving gRPC on" in line)
        with calling(line.split()[-1]) as caller:
            caller.check_works()
            process.popen.terminate()
            assert process.popen.wait(20) == 0
    assert "Traceback" not in process.log.read_text()


def test_a_port_that_is_taken(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"Cannot listen on 127.0.0.1:{port}: Address already in use"):
            Serving(str(repository), port=0, grpc_port=port)
        code, said = serve_fails(str(repository), "--port", "0", "--grpc-port", str(port))
    assert code == 1
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use. Stop what uses the port" in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_at_the_last_moment(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC takes no socket that is bound already: somebody may be quicker."""
    server = BackgroundServer(str(repository), grpc_port=0, settings=ANYBODY)
    held = server._serving._grpc._held  # type: ignore[union-attr]
    port, close = held.getsockname()[1], held.close
    with socket.socket() as quicker:
        quicker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

        class Lost:
            getsockopt = held.getsockopt

            def close(self) -> None:
                close()
                quicker.bind(("127.0.0.1", port))
                quicker.listen()

        monkeypatch.setattr(server._serving._grpc, "_held", Lost())
        with pytest.raises(ServingError, match=f"Cannot listen on 127.0.0.1:{port} for gRPC"), server:
            pass


@pytest.mark.parametrize(
    ("port", "says"),
    [("99999", "port is 99999; choose one from 0 to 65535"), ("-1", "port is -1; choose one"), ("x", "grpc")],
)
def test_ports_that_are_none(repository: Path, port: str, says: str) -> None:
    code, said = serve_fails(str(repository), "--port", "0", "--grpc-port", port)
    assert code == 2
    assert says in said


def test_asked_for_without_being_installed(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("shipline.serve.grpc")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(MissingExtraError, match=r"'grpc', which is not installed. .* pip install 'shipline\[grpc\]'"):
        Serving(str(repository), port=0, grpc_port=0)


def test_without_a_port_there_is_no_grpc(repository: Path) -> None:
    """Nor is it imported, nor what makes traces, which nobody asked for."""
    with BackgroundServer(str(repository)) as server:
        assert server.grpc_address is None
        check_works(server.url)
    program = (
        "import sys; from shipline.serve.server import BackgroundServer\n"
        "heavy = {'grpc', 'google.protobuf', 'opentelemetry.sdk'}\n"
        f"with BackgroundServer({str(repository)!r}): print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
