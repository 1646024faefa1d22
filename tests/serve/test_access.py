"""Who may call what: every route and every method, with every key and with none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from key_files import ADMIN, INFERENCE, both_keys, key_file
from serving import check_error, connect, path_only, receive, web

from shipline.serve.access import NEEDS, Access
from shipline.serve.errors import RequestError
from shipline.serve.grpc import messages
from shipline.serve.http.app import Application
from shipline.serve.keys import Keys
from shipline.serve.server import BackgroundServer
from shipline.serve.settings import ServerSettings

INFER = "/v2/models/linear/infer"
METHOD_NAMES = sorted(name for name in NEEDS if not name.startswith("/"))
LOAD = "/v2/repository/models/{name}/load"
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")


@pytest.fixture
def keys(tmp_path: Path) -> str:
    return both_keys(tmp_path)


def test_every_route_of_the_application_has_been_thought_about() -> None:
    application = Application("memory://nothing", lambda error: None)
    assert {getattr(route, "path", "?") for route in application.routes} <= NEEDS.keys()
    for name in METHOD_NAMES:
        messages.method(name)  # there is one


def closed_routes(server: BackgroundServer) -> None:
    """Add one that an admin may call, and some that nobody has thought about."""
    app = server._serving._app

    async def done() -> dict[str, bool]:
        return {"done": True}

    async def mounted(scope: object, receive: object, send: object) -> None:
        raise AssertionError("somebody was let in")

    app.add_api_route("/debug", done, methods=["GET", "POST"], include_in_schema=False)
    app.mount("/ui", mounted)


@pytest.fixture(scope="module")
def guarded(repository: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with keys."""
    text = f"inference {INFERENCE}\nadmin {ADMIN}\n"
    settings = ServerSettings(api_keys=key_file(tmp_path_factory.mktemp("keys"), text))
    with BackgroundServer(repository, settings=settings) as server:
        closed_routes(server)
        yield server.url


@pytest.fixture(scope="module")
def unguarded(repository: str) -> Iterator[str]:
    """A server without."""
    with BackgroundServer(repository) as server:
        closed_routes(server)
        yield server.url


OPEN = ("/v2/health/live", "/v2/health/ready", "/ping")
FOR_INFERENCE = (
    "/v2", "/v2/", "/v2/models/linear", "/v2/models/linear/ready", "/v2/models/linear/versions/1",
    "/v2/models/linear/versions/1/ready", INFER, "/v2/models/linear/versions/1/infer", "/models/linear/predict",
    "/models/linear/versions/1/predict", "/v2/models/nobody/infer", "/metrics", "/docs", "/docs/oauth2-redirect",
    "/redoc", "/openapi.json", "/v2/models/linear/stats", "/v2/models/linear/versions/1/config", "/v2/models/stats",
    "/v1/models", "/v1/models/linear", "/v1/models/linear:predict", "/v1/models/nobody:predict", "/invocations",
    "/v2/repository/index",
)  # fmt: skip
UNKNOWN = (
    "/", "/nothing", "/v2/health", "/v2/health/live/", "/v2/health/ready/", "//v2/health/live", "/V2/health/live",
    "/v2/health/live/../ready", "/v2/./health/live", "/v2/health/live;x", "/metrics/", "/docs/", "/v2//", "/v2/models",
    "/v2/models/linear/", "/v2/models/linear/infer/", "/v2/models/linear/infer;x", "/v2/repository/models/a/b/load",
    "/ui",
)  # fmt: skip
FOR_ADMIN = (
    "/v2/repository/models/nobody/load", "/v2/repository/models/nobody/unload", "/debug", "/ui/",
    "/ui/v2/health/live", "/ui/metrics",
)  # fmt: skip


def statuses(url: str, method: str, path: str, key: str | None, header: str = "authorization") -> int:
    """Ask for a path as it is written."""
    value = None if key is None else f"Bearer {key}" if header == "authorization" else key
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Length: 2", "Connection: close"]
    if value is not None:
        lines.append(f"{header}: {value}")
    with connect(url) as connection:
        connection.sendall("\r\n".join([*lines, "", "{}"]).encode())
        answer = receive(connection, method)
    if answer.status in (401, 403) and method != "HEAD":
        check_error(answer, answer.status, "key")
        assert (answer.headers.get("www-authenticate") == "Bearer") is (answer.status == 401)
    return answer.status


@pytest.mark.parametrize("method", METHODS)
def test_with_keys_every_route_asks_for_the_right_one(guarded: str, method: str) -> None:
    for path in OPEN:
        assert statuses(guarded, method, path, None) in (200, 405), path
    for path in (*FOR_INFERENCE, *UNKNOWN, *FOR_ADMIN):
        assert statuses(guarded, method, path, None) == 401, path
    for path in (*FOR_INFERENCE, *UNKNOWN):
        for key in (INFERENCE, ADMIN):
            assert statuses(guarded, method, path, key) in (200, 400, 404, 405), path
    for path in FOR_ADMIN:
        assert statuses(guarded, method, path, INFERENCE) == 403, path
    for path in FOR_ADMIN[:3]:
        assert statuses(guarded, method, path, ADMIN) in (200, 404, 405), path


@pytest.mark.parametrize("method", METHODS)
def test_without_keys_what_changes_something_is_closed(unguarded: str, method: str) -> None:
    for path in (*OPEN, *FOR_INFERENCE, *UNKNOWN):
        assert statuses(unguarded, method, path, None) in (200, 400, 404, 405), path
    for path in FOR_ADMIN:
        for key in (None, ADMIN):
            assert statuses(unguarded, method, path, key) == 403, path


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models%2flinear", "/v2/%6dodels/linear", "/%76%32/models/linear/infer", "/metric%73",
        "/v2%2fhealth/../../metrics",
        "http://localhost/metrics", "http://localhost/v2/models/linear", "/metrics?/v2/health/live",
        "/metrics?x=/ping", "/metrics;/v2/health/live", "/metrics%3f/v2/health/live", "/v2/health/live%00",
        "/v2/health/live%2f..%2f..%2fmetrics", "/v2/health/live%3f", "*",
    ],
)  # fmt: skip
def test_it_is_the_routed_path_that_counts(guarded: str, path: str) -> None:
    assert statuses(guarded, "GET", path, None) == 401


@pytest.mark.parametrize("path", ["/v2/health/%6cive", "http://localhost/v2/health/live", "/v2/health/live?x=/metrics"])
def test_health_is_open_however_it_is_written(guarded: str, path: str) -> None:
    assert statuses(guarded, "GET", path, None) == 200


def test_an_operator_may_open_what_changes_something_but_not_to_web_pages(repository: str) -> None:
    with BackgroundServer(repository, settings=ServerSettings(admin_without_key=True)) as server:
        closed_routes(server)
        path = f"{server.url}/v2/repository/models/linear/load"
        assert web.post(path).status_code == 200
        for name in ("origin", "sec-fetch-site"):
            check_error(web.post(path, headers={name: "null"}), 403, "web page")
        assert web.get(f"{server.url}/v2", headers={"origin": "null"}).status_code == 200


def test_what_the_other_protocol_calls(keys: str) -> None:
    """`authorise` knows no HTTP: routes, names and values, an address."""
    guard = Access(Keys(keys))
    guard.authorise(["/ping"], [], "")
    guard.authorise([INFER.replace("linear", "{name}")], [(b"authorization", f"Bearer {INFERENCE}".encode())], "a")
    for routes, status in (([LOAD], 403), (["never heard of"], 403), ([], None)):
        if status is None:
            guard.authorise(routes, [(b"x-api-key", INFERENCE.encode())], "a")
            continue
        with pytest.raises(RequestError) as error:
            guard.authorise(routes, [(b"x-api-key", INFERENCE.encode())], "a")
        assert error.value.status == status


@pytest.mark.parametrize("name", [name for name in METHOD_NAMES if name not in ("ServerLive", "ServerReady")])
def test_the_other_protocol_asks_for_the_same_keys(repository: str, keys: str, name: str) -> None:
    admin = name in ("RepositoryModelLoad", "RepositoryModelUnload")
    with BackgroundServer(repository, grpc_port=0, settings=ServerSettings(api_keys=keys)) as server:
        assert grpc_code(server, "ServerLive") is grpc.StatusCode.OK
        assert grpc_code(server, name) is grpc.StatusCode.UNAUTHENTICATED
        assert grpc_code(server, name, ("x-api-key", "wrong")) is grpc.StatusCode.UNAUTHENTICATED
        refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        inference = grpc_code(server, name, ("authorization", f"Bearer {INFERENCE}"))
        assert (inference is grpc.StatusCode.PERMISSION_DENIED) if admin else (inference not in refused)
        assert grpc_code(server, name, ("x-api-key", ADMIN)) not in refused
    if admin:
        with BackgroundServer(repository, grpc_port=0) as server:
            assert grpc_code(server, name) is grpc.StatusCode.PERMISSION_DENIED


def test_a_method_that_there_is_not_needs_no_key_to_be_found_missing(repository: str, keys: str) -> None:
    with BackgroundServer(repository, grpc_port=0, settings=ServerSettings(api_keys=keys)) as server:
        assert grpc_code(server, "SystemSharedMemoryStatus") is grpc.StatusCode.UNIMPLEMENTED


def grpc_code(server: BackgroundServer, name: str, *metadata: tuple[str, str]) -> grpc.StatusCode:
    """What a call with an empty message ends with."""
    with grpc.insecure_channel(str(server.grpc_address)) as channel:
        calls = channel.stream_stream(f"/{messages.SERVICE}/{name}")(iter([b""]), metadata=metadata, timeout=20)
        try:
            for _ in calls:
                pass
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def test_a_path_that_no_client_would_send(unguarded: str) -> None:
    for path in ("//v2", "//v2/models/linear", "/v2/models/linear;x", "/v2/../v2", "/v2/%2e%2e/v2"):
        assert path_only(unguarded, "GET", path).status == 404
