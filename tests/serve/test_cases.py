"""Cases of bad input and faults that no other file has: each is named by what may come, and what must not happen."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path
from typing import Any
from urllib.parse import quote

import artifacts
import numpy as np
import pytest
from commands import serving
from helpers import wait_until
from serving import (
    ANYBODY,
    GRAPHS,
    check_error,
    check_works,
    connect,
    path_only,
    receive,
    tensor,
    web,
)
from starlette.routing import Mount

from shipline.artifact import GOLDEN, GOLDEN_TENSORS, find_artifact
from shipline.errors import IntegrityError
from shipline.serve.memory import resident
from shipline.serve.server import BackgroundServer, Serving
from shipline.store.store import LocalStore

SQUARE = artifacts.square()
SQUARE_INFER = "/v2/models/square/infer"


def ask_square(url: str, size: int, **parameters: int) -> Any:
    """One row of so many numbers: the model's time and memory grow with the cube and the square of that."""
    body = {"inputs": [tensor("x", np.full((1, size), 0.1, np.float32), "FP32")], "parameters": parameters}
    return web.post(url + SQUARE_INFER, json=body)


def check_square(url: str) -> None:
    answer = ask_square(url, 3)
    assert answer.status_code == 200, answer.text
    x = np.full((1, 3), 0.1, np.float32)
    assert answer.json()["outputs"][0]["data"] == pytest.approx(SQUARE.function({"x": x})["y"].ravel(), rel=1e-4)


def test_a_legal_shape_that_takes_for_ever_is_504_and_holds_up_no_other_model(tmp_path: Path) -> None:
    """Case 52. The model is fast for its golden rows; what is as large as a client likes is not for the event loop."""
    for name, graph in (("square", SQUARE), ("linear", GRAPHS["linear"])):
        artifacts.publish(f"{tmp_path}/{name}", graph)
    with BackgroundServer(str(tmp_path)) as server:
        batcher = server._serving._app.repository.get("square")._batcher
        check_error(ask_square(server.url, 3000, timeout=50_000), 504, "no answer in time")
        assert batcher._running  # still at it
        check_works(server.url)
        wait_until(lambda: not batcher._running)
        check_square(server.url)


def test_a_row_that_is_worked_on_for_ever_is_504_and_holds_up_no_other_model(tmp_path: Path) -> None:
    """How often a graph goes round is for its input to say, however small that is."""
    for name, graph in (("count", artifacts.count()), ("linear", GRAPHS["linear"])):
        artifacts.publish(f"{tmp_path}/{name}", graph)
    with BackgroundServer(str(tmp_path)) as server:
        batcher = server._serving._app.repository.get("count")._batcher
        infer = f"{server.url}/v2/models/count/infer"
        body: dict[str, Any] = {"inputs": [tensor("x", np.array([[1_000_000]]), "INT64")]}
        check_error(web.post(infer, json={**body, "parameters": {"timeout": 50_000}}), 504, "no answer in time")
        assert batcher._running  # still at it
        check_works(server.url)
        wait_until(lambda: not batcher._running)
        body = {"inputs": [tensor("x", np.array([[5]]), "INT64")]}
        assert web.post(infer, json=body).json()["outputs"][0]["data"] == [5]


def test_one_request_that_needs_all_memory_is_500_for_it_alone(tmp_path: Path) -> None:
    """S12. Its matrix has 6 GiB; the process may grow by one."""
    for name, graph in (("square", SQUARE), ("linear", GRAPHS["linear"])):
        artifacts.publish(f"{tmp_path}/models/{name}", graph)
    with serving(tmp_path / "models", tmp_path / "log") as process:
        check_square(process.url)
        pid = process.popen.pid
        limit = mapped(pid) + (1 << 30)
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        for _ in range(3):
            check_error(ask_square(process.url, 40_000), 500, r"^The model failed on this input\.$")
            check_works(process.url)
            check_square(process.url)
        assert process.popen.poll() is None
        assert process.popen.pid == pid
        assert mapped(pid) < limit - (1 << 29)  # nothing of it is kept


def mapped(pid: int) -> int:
    """The bytes of a process's address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


PICTURE_1, PICTURES = artifacts.picture()


@pytest.mark.parametrize("name", sorted(artifacts.artifact_files(PICTURE_1, PICTURES)))
def test_a_version_that_is_asked_for_has_no_file_of_another(tmp_path: Path, name: str) -> None:
    """Case 62. Each file is named by its digest in the version's manifest, those that belong to others, too."""
    url, other = f"{tmp_path}/picture", artifacts.Raw(PICTURES.processing, [artifacts.png(n) for n in range(7, 12)])
    first = artifacts.publish(url, PICTURE_1, raw=PICTURES, version="1")
    second = artifacts.publish(url, PICTURE_1, raw=other, version="2")
    mine, theirs = first.manifest.files[name], second.manifest.files[name]
    assert mine.key != theirs.key  # nothing is shared, so nothing is "the latest"
    (tmp_path / "picture" / "1" / mine.key).write_bytes(second.read(name) + b" " * (name not in DIFFERENT))
    with pytest.raises(IntegrityError, match=re.escape(name)):
        find_artifact(url, "picture", "1").read(name)
    with BackgroundServer(url) as server:  # the stable one is as it was
        assert web.get(f"{server.url}/v2/models/picture").json()["versions"] == ["2"]
    serving_1 = Serving(f"{url}/1", port=0)
    with pytest.raises(IntegrityError, match=re.escape(name)):
        serving_1.run()


#: Files of the two versions that are not the same already.
DIFFERENT = (GOLDEN, GOLDEN_TENSORS)


STATIC = [
    f"{route}/{path}"
    for route in ("", "/docs", "/redoc", "/static", "/openapi.json", "/metrics", "/v2")
    for path in (
        "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "..\\..\\etc\\passwd",
        "%5c..%5cetc%5cpasswd", "/etc/passwd", "%2fetc%2fpasswd", "....//etc/passwd", "%252e%252e%252fetc%252fpasswd",
        "..%00/etc/passwd", "..%c0%af..%c0%afetc/passwd", "index.html", "../pyproject.toml", "../serve/__init__.py",
    )
]  # fmt: skip


def test_no_path_leads_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 95. There are no static files; a path below any route is just not there."""
    artifacts.publish(f"{tmp_path}/linear", GRAPHS["linear"])
    touched: list[str] = []
    with BackgroundServer(str(tmp_path), settings=ANYBODY) as server:
        assert not [route for route in server._serving._app.routes if isinstance(route, Mount)]
        monkeypatch.setattr(Path, "open", lambda self, *_, **__: touched.append(str(self)))
        monkeypatch.setattr(LocalStore, "read", lambda self, key: touched.append(key))
        for path in STATIC:
            for method in ("GET", "HEAD", "POST"):
                answer = path_only(server.url, method, path)
                assert answer.status in (400, 404), (method, path, answer)
                if method != "HEAD":
                    check_error(answer, answer.status)
        monkeypatch.undo()
        check_works(server.url)
    assert touched == []


FORGED = "2026-01-01 00:00:00,000 ERROR forged"
ESCAPES = ("\x1b[2J\x1b[31m", "\x9b31m", "\x07", "\r", "\n", "\x0b", "\x85", "\u2028", "%0a", "%0d%0a", "%1b[31m")


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_client_sends_forges_no_line_of_the_log(tmp_path: Path, form: str) -> None:
    """Case 93: in a path, a name, a header, a body; each of which ends in an error."""
    for name in ("linear", "lookup"):
        artifacts.publish(f"{tmp_path}/models/{name}", GRAPHS[name])
    environment = {**os.environ, "SHIPLINE_LOG_FORMAT": form}
    keys = ("--admin-without-key",)
    with serving(tmp_path / "models", tmp_path / "log", *keys, environment=environment) as process:
        for escape in ESCAPES:
            text = f"x{escape}{FORGED}"
            poison = {"id": text, "inputs": [tensor("index", np.array([99]), "INT64")]}
            head = f"X-Request-Id: {text}", f"traceparent: {text}", f"User-Agent: {text}"
            raw = "\r\n".join(["POST /v2/models/lookup/infer HTTP/1.1", "Host: localhost", *head]).encode()
            data = json.dumps(poison).encode()
            say(process.url, raw + b"\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            web.post(f"{process.url}/v2/models/lookup/infer", json=poison)
            web.post(f"{process.url}/v2/repository/models/{quote(text)}/load")
            say(process.url, f"GET /{text} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        check_works(process.url)
    said = process.log.read_text()
    assert said.count("failed on request") >= len(ESCAPES)
    assert not re.search(r"[^\n\x20-\x7e]", said)
    for line in said.splitlines():
        if form == "json":
            assert {"time", "level", "logger", "message"} <= json.loads(line).keys() <= {*FIELDS}
        else:
            assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|ERROR) (Serving|Model|lookup|linear)|  ", line)


def say(url: str, data: bytes) -> None:
    """Send bytes as they are, and read one answer."""
    with connect(url) as connection:
        connection.sendall(data)
        assert receive(connection).status >= 400


FIELDS = ("time", "level", "logger", "message", "error")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "gzip;q=1", "\xff", "x" * 200])
def test_a_thousand_unknown_encodings_leave_nothing(tmp_path: Path, encoding: str) -> None:
    """Case 6: each is 415 on the same connection, and the memory is what it was."""
    artifacts.publish(f"{tmp_path}/linear", GRAPHS["linear"])
    body = bytes(64 << 10)
    request = (
        f"POST /v2/models/linear/infer HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: {encoding}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode("latin-1") + body
    with BackgroundServer(str(tmp_path)) as server, connect(server.url) as connection:

        def repeat(times: int) -> int:
            for _ in range(times):
                connection.sendall(request)
                assert receive(connection).status == 415
            return resident()

        before = repeat(200)
        assert repeat(1000) - before < 10 << 20
        check_works(server.url)
