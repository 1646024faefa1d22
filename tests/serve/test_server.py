"""`shipline serve` as a process: what it serves, how it starts, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import artifacts
import httpx
import pytest
import uvicorn
from bad_requests import x
from commands import Process, serve_fails, serving
from helpers import S3_SECRET, free_port, listens, wait_until
from serving import PICTURES, check_works, connect, gated_server, infer, post, publish_all, receive, web

import shipline as sl
from shipline.artifact import Artifact, find_artifacts, open_model
from shipline.errors import ConfigError, NotFoundError, ServingError, StoreError
from shipline.serve.server import BackgroundServer, Serving

INFER = "/v2/models/linear/infer"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one model."""
    artifacts.publish(f"{tmp_path}/models/linear", artifacts.linear())
    return tmp_path / "models"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_when_what_was_accepted_is_answered(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serving(repository, tmp_path / "log") as process, connect(process.url) as half, connect(process.url) as idle:
        request = post(INFER, x())
        half.sendall(request[:-10])
        idle.sendall(request)
        assert receive(idle).status == 200
        port = int(process.url.rpartition(":")[2])
        process.popen.send_signal(number)
        wait_until(lambda: not listens(port))  # nobody new is let in
        assert process.popen.poll() is None  # and who was in is waited for
        half.sendall(request[-10:])
        answer = receive(half)
        assert answer.status == 200
        assert b'"outputs"' in answer.content
        assert process.popen.wait(20) == 0
        assert idle.recv(1) == b""
    assert "Traceback" not in process.log.read_text()


def test_a_signal_under_load_ends_it_without_a_wrong_answer(repository: Path, tmp_path: Path) -> None:
    # The server goes first, whatever fails: clients ask until it does.
    with ThreadPoolExecutor(8) as pool, serving(repository, tmp_path / "log") as process:
        stopping = threading.Event()

        def ask(client: int) -> int:
            """Ask until the server stops; whatever it answers is 200, with the right numbers."""
            count = 0
            while True:
                try:
                    infer(process.url, seed=client)
                except httpx.ConnectError:
                    return count
                except httpx.TransportError:
                    # The system let the connection in, and the server closed its door before it looked there.
                    assert stopping.is_set()
                    return count
                count += 1
                if count == 5:
                    started.release()

        started = threading.Semaphore(0)
        clients = [pool.submit(ask, number) for number in range(8)]
        for _ in clients:
            assert started.acquire(timeout=30), [client.exception() for client in clients if client.done()]
        stopping.set()
        process.popen.terminate()
        assert all(client.result() >= 5 for client in clients)
        assert process.popen.wait(20) == 0


def test_readiness_goes_off_before_the_door_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When uvicorn begins to close, new clients are still heard, and told not to come; the running one is answered."""
    heard: list[Any] = []
    shutdown = uvicorn.Server.shutdown

    async def spied(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        heard.append((await asyncio.to_thread(web.get, f"{url}/v2/health/live")).status_code)
        heard.append((await asyncio.to_thread(web.get, f"{url}/v2/health/ready")).status_code)
        gate.set()
        await shutdown(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "shutdown", spied)
    with ThreadPoolExecutor(1) as pool:
        with gated_server(tmp_path, monkeypatch) as server:
            url, gate = server.url, server.backend.gate
            server.close_gate()
            asked = pool.submit(server.ask, 5)
            server.wait_for(1)
        answer = asked.result()
    assert heard == [200, 503]
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["data"] == [5]


def test_the_grace_has_an_end(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A client that never sends the rest of its request does not hold the server for ever."""
    serving_ = Serving(str(repository), port=0, grace_s=1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(serving_.run)
        wait_until(lambda: serving_.ready)
        with connect(serving_.address) as half:
            half.sendall(post(INFER, x())[:-10])
            check_works(serving_.address)  # came after it, so the other one was heard, too
            serving_.stop()
            running.result(timeout=30)
    assert "timeout graceful shutdown exceeded" in caplog.text
    assert not listens(int(serving_.address.rpartition(":")[2]))


@pytest.mark.parametrize("target", [".", "models", "models/linear", "models/linear/1", "models/linear/"])
def test_serves_a_repository_a_model_or_a_version(
    repository: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All relative to where one stands; the parent of a repository holds no model."""
    monkeypatch.chdir(repository.parent)
    if target == ".":
        with pytest.raises(NotFoundError, match="No artifact below"), BackgroundServer(target):
            pass
    else:
        with BackgroundServer(target) as server:
            check_works(server.url)


def test_serves_every_model_of_a_repository_from_the_command_line(tmp_path: Path) -> None:
    publish_all(tmp_path / "models")
    with serving(tmp_path / "models", tmp_path / "log") as process:
        check_works(process.url)
        infer(process.url, "total")
        answer = web.post(f"{process.url}/models/picture/predict", content=PICTURES.inputs[0])
        assert answer.json()["model_version"] == "3"
        said = process.log.read_text()
    for name, version in (("linear", "1"), ("picture", "3"), ("table", "1")):
        assert f"{name} version {version} (float32) is ready" in said
    assert f"Serving {tmp_path}/models on {process.url} (docs: {process.url}/docs)" in said


def test_of_several_versions_the_stable_one_is_served_or_the_one_that_is_asked_for(tmp_path: Path) -> None:
    for version in ("1", "2", "10"):
        artifacts.publish(f"{tmp_path}/linear", artifacts.linear(), version=version)
    open_model(f"{tmp_path}/linear").point("stable", "2")
    for target, version in (("", "2"), ("linear", "2"), ("linear/10", "10"), ("linear/1", "1")):
        with BackgroundServer(f"{tmp_path}/{target}") as server:
            check_works(server.url)
            assert web.get(f"{server.url}/v2/models/linear").json()["versions"] == [version]
    (tmp_path / "linear" / "channels.json").unlink()
    with BackgroundServer(str(tmp_path)) as server:
        assert web.get(f"{server.url}/v2/models/linear").json()["versions"] == ["10"]


def test_serves_from_s3(s3: str, tmp_path: Path) -> None:
    publish_all_at(s3)
    environment = dict(os.environ)
    with serving(f"{s3}/models", tmp_path / "log", environment=environment) as process:
        check_works(process.url)
        assert web.post(f"{process.url}/models/picture/predict", content=PICTURES.inputs[0]).status_code == 200
        said = process.log.read_text()
    assert S3_SECRET not in said
    assert len(list((tmp_path / "cache").iterdir())) > 0  # and it was cached on this disk


def publish_all_at(url: str) -> None:
    artifacts.publish(f"{url}/models/linear", artifacts.linear())
    graph, raw = artifacts.picture()
    artifacts.publish(f"{url}/models/picture", graph, raw=raw)


def test_a_storage_that_cannot_be_reached_is_tried_again(
    repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Meanwhile the server is alive and not ready; what it says names no credentials."""
    monkeypatch.setattr("shipline.serve.http.app.RETRY_S", 0.05)
    find, tries = find_artifacts, 0

    def found(url: str) -> list[Artifact]:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise StoreError(f"Cannot list {url}: connection refused. Check the network, the end point and the rest.")
        return find(url)

    monkeypatch.setattr("shipline.serve.repository.find_artifacts", found)
    with caplog.at_level("WARNING", "shipline"), BackgroundServer(str(repository)) as server:
        check_works(server.url)
    assert tries == 4
    assert caplog.text.count("connection refused. Check the network, the end point and the rest. Trying again in") == 3


def test_an_s3_end_point_that_is_gone_and_comes_back(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts.publish(f"{s3}/linear", artifacts.linear())
    good, port = os.environ["AWS_ENDPOINT_URL"], free_port()
    environment = os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"}
    command = [sys.executable, "-m", "shipline", "serve", s3, "--port", str(own := free_port())]
    with (log := tmp_path / "log").open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    url = f"http://127.0.0.1:{own}"
    try:
        wait_until(lambda: b"Trying again" in log.read_bytes())
        assert web.get(f"{url}/v2/health/live").status_code == 200
        assert web.get(f"{url}/v2/health/ready").status_code == 503
        assert S3_SECRET not in log.read_text()
        with forwarding(port, int(good.rpartition(":")[2])):
            wait_until(lambda: web.get(f"{url}/v2/health/ready").status_code == 200)
            infer(url)
    finally:
        server.terminate()
        assert server.wait(30) == 0


@contextlib.contextmanager
def forwarding(port: int, to: int) -> Iterator[None]:
    """Pass connections on to another port of this machine."""

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", to)) as other:
                back = threading.Thread(target=self.pump, args=(other, self.request))
                back.start()
                self.pump(self.request, other)
                back.join()

        @staticmethod
        def pump(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 16):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Forward) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_a_port_that_is_taken(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = serve_fails(str(repository), "--port", str(port))
        with pytest.raises(ServingError, match=f"Cannot listen on 127.0.0.1:{port}"):
            Serving(str(repository), port=port)
    assert code == 1
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use. Stop what uses the port" in said
    assert "Traceback" not in said


def test_a_second_server_on_the_same_port_does_not_share_it(repository: Path) -> None:
    with BackgroundServer(str(repository)) as server:
        with pytest.raises(ServingError, match="Address already in use"):
            Serving(str(repository), port=int(server.url.rpartition(":")[2]))
        check_works(server.url)
    with BackgroundServer(str(repository), port=int(server.url.rpartition(":")[2])) as again:  # free again at once
        check_works(again.url)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "What to serve? Give a URL first"),
        (["nowhere"], 1, "No artifact below nowhere. Give a repository, a model or a version"),
        (["models/linear/7"], 1, "No artifact below models/linear/7"),
        (["."], 1, "No artifact below ."),
        (["models", "--port", "99999"], 2, "port is 99999; choose one from 0 to 65535"),
        (["models", "--port", "-1"], 2, "port is -1; choose one from 0 to 65535"),
        (["models", "--port", "http"], 2, "port"),
        (
            ["models", "--host", "no.such.host.invalid"],
            2,
            "host is 'no.such.host.invalid', which this machine does not know",
        ),
        (["models", "--prot", "1"], 2, "port"),
        (["nonsense://x"], 2, "nonsense"),
        (["gs://bucket/models"], 2, "pip install 'shipline[gcs]'"),
    ],
)
def test_wrong_settings_end_it_with_a_sentence(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    says: str,
) -> None:
    from shipline.commands import main

    monkeypatch.chdir(repository.parent)
    if "--port" not in options and options:
        options = [*options, "--port", str(free_port())]
    assert main(["serve", *options]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said


def test_two_models_of_one_name_are_not_served_together(tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/one", artifacts.linear(), name="same")
    artifacts.publish(f"{tmp_path}/two", artifacts.linear(), name="same")
    with (
        pytest.raises(ConfigError, match="Two models below the URL have one name: same, same"),
        BackgroundServer(str(tmp_path)),
    ):
        pass


def test_neither_torch_nor_ray_is_imported_to_serve(tmp_path: Path) -> None:
    publish_all(tmp_path / "models")
    (tmp_path / "digit.png").write_bytes(PICTURES.inputs[0])
    script = Path(__file__).parent / "serve_and_predict.py"
    command = [sys.executable, "-W", "error", str(script), str(tmp_path / "models"), str(tmp_path / "digit.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_serving_writes_nothing_into_the_home(repository: Path, tmp_path: Path) -> None:
    """onnxruntime would: a database of what it was used for, and an id of the machine."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    with serving(repository, tmp_path / "log", environment=environment) as process:
        check_works(process.url)
        stop(process)
    assert list(home.rglob("*")) == []


def stop(process: Process) -> None:
    process.popen.terminate()
    assert process.popen.wait(20) == 0


def test_an_address_of_ip_version_6(repository: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with BackgroundServer(str(repository), host="::1") as server:
        assert server.url.startswith("http://[::1]:")
        check_works(server.url)


def test_a_server_of_python_serves_until_it_is_stopped(repository: Path) -> None:
    """`sl.serve` blocks; the command line calls the same."""
    with pytest.raises(NotFoundError, match="No artifact below"):
        sl.serve(str(repository / "nothing"), port=0)
