"""Who is let in: files of keys, every route with every key, wrong tries, names of hosts."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import artifacts
import grpc
import httpx
import pytest
from bad_requests import x
from serving import check_error, connect, path_only, receive, web

from shipline.errors import ConfigError
from shipline.serve import access
from shipline.serve.access import NEEDS, Access, WrongTries
from shipline.serve.errors import RequestError
from shipline.serve.grpc import messages
from shipline.serve.http.app import Application
from shipline.serve.http.gate import Hosts, hosts_of
from shipline.serve.keys import Keys, Role
from shipline.serve.server import BackgroundServer, Serving
from shipline.serve.settings import ServerSettings

INFERENCE, ADMIN = "gT8mYw2uQz5xLr0v", "Kd93-fhW.aa8+LmZ7/2q"
INFER = "/v2/models/linear/infer"
METHOD_NAMES = sorted(name for name in NEEDS if not name.startswith("/"))
LOAD = "/v2/repository/models/{name}/load"
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")


def key_file(directory: Path, text: str, mode: int = 0o600) -> str:
    file = directory / "keys"
    file.write_text(text)
    file.chmod(mode)
    return str(file)


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """A file with a key for each role, one of them as its digest."""
    digest = hashlib.sha256(ADMIN.encode()).hexdigest()
    return key_file(tmp_path, f"# who: what\ninference {INFERENCE}\n\n  admin\tsha256:{digest}  \n")


def test_each_key_has_its_role(keys: str) -> None:
    found = Keys(keys)
    assert found.role(INFERENCE.encode()) is Role.INFERENCE
    assert found.role(ADMIN.encode()) is Role.ADMIN
    digest = hashlib.sha256(ADMIN.encode()).hexdigest()
    for wrong in ("", INFERENCE[:-1], f"{INFERENCE}x", INFERENCE.lower(), digest, f"sha256:{digest}", "x" * 100_000):
        assert found.role(wrong.encode()) is Role.ANYONE


def test_every_key_is_compared_in_constant_time(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Keys(keys)
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def spied(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", spied)
    for key in (INFERENCE, ADMIN, "wrong"):
        compared.clear()
        found.role(key.encode())
        assert compared == [(32, 32), (32, 32)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("# inference aaaaaaaaaaaaaaaaaaaa\n\n", "holds no key"),
        ("inference", "line 1 of .* is not a role and a key"),
        (f"inference {INFERENCE} more", "line 1 of .* is not a role and a key"),
        (f"\nroot {INFERENCE}", "line 2 of .*Unknown role 'root'.*Known: admin, inference"),
        (f"Admin {INFERENCE}", "Did you mean 'admin'"),
        ("inference short", "easily guessed"),
        ("inference 123456789012345", "easily guessed"),
        ("inference changeme", "easily guessed"),
        ("inference changeme-changeme-changeme", "easily guessed"),
        ("admin my-Example-key-12345", "easily guessed"),
        ("admin your-api-key-goes-here", "easily guessed"),
        ("admin aaaaaaaaaaaaaaaaaaaaaaaa", "easily guessed"),
        ("admin schl\u00fcsselschl\u00fcssel", "no header can carry"),
        ("admin sha256:12", "not 64 hexadecimal digits"),
        (f"admin sha256:{'g' * 64}", "not 64 hexadecimal digits"),
        (f"admin sha256:{hashlib.sha256(b'').hexdigest()}", "everybody tries first"),
        (f"admin sha256:{hashlib.sha256(b'changeme').hexdigest()}", "everybody tries first"),
        (f"inference {INFERENCE}\nadmin {INFERENCE}", "line 2 of .* stands there already"),
    ],
)
def test_a_file_that_would_let_strangers_in_is_refused(tmp_path: Path, text: str, says: str) -> None:
    file = key_file(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as error:
        Serving("nowhere", port=0, settings=ServerSettings(api_keys=file))
    for word in text.split()[1:]:
        if len(word) >= 16:
            assert word not in str(error.value).replace(file, "")  # an error is no place for a key


def test_keys_that_everybody_can_read_are_refused_unless_they_are_digests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"everybody on this machine can read.*chmod o-r"):
        Keys(key_file(tmp_path, f"inference {INFERENCE}", 0o644))
    digest = hashlib.sha256(INFERENCE.encode()).hexdigest()
    assert Keys(key_file(tmp_path, f"inference sha256:{digest}", 0o644)).role(INFERENCE.encode()) is Role.INFERENCE
    assert Keys(key_file(tmp_path, f"inference {INFERENCE}", 0o640)).role(INFERENCE.encode()) is Role.INFERENCE


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for file in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigError, match="which cannot be read"):
            Keys(str(file))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is no text"):
        Keys(str(tmp_path / "binary"))


# --- every route ------------------------------------------------------------------------------------------------------


def test_every_route_of_the_application_has_been_thought_about() -> None:
    application = Application("memory://nothing", lambda error: None)
    assert {getattr(route, "path", "?") for route in application.routes} <= NEEDS.keys()
    for name in METHOD_NAMES:
        messages.method(name)  # there is one


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository with one model."""
    root = tmp_path_factory.mktemp("models")
    artifacts.publish(f"{root}/linear", artifacts.linear())
    return str(root)


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


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": f"Bearer {INFERENCE}"}, 200),
        ({"authorization": f"bearer   {INFERENCE}"}, 200),
        ({"x-api-key": INFERENCE}, 200),
        ({"authorization": "Basic abc", "x-api-key": INFERENCE}, 200),
        ({"authorization": INFERENCE}, 401),
        ({"authorization": f"Basic {INFERENCE}"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": f"Bearer {INFERENCE}"}, 401),
        ({"cookie": f"authorization=Bearer {INFERENCE}; x-api-key={INFERENCE}"}, 401),
        ({"x-forwarded-for": "127.0.0.1", "x-original-url": "/v2/health/live"}, 401),
        ({"authorization": f"Bearer {INFERENCE[:-1]}"}, 401),
    ],
)
def test_where_a_key_stands(repository: str, keys: str, headers: dict[str, str], status: int) -> None:
    with BackgroundServer(repository, settings=ServerSettings(api_keys=keys)) as server:
        assert web.post(server.url + INFER, content=x(), headers=headers).status_code == status
        assert web.post(f"{server.url}{INFER}?api_key={INFERENCE}", content=x()).status_code == 401


def test_an_operator_may_open_what_changes_something_but_not_to_web_pages(repository: str) -> None:
    with BackgroundServer(repository, settings=ServerSettings(admin_without_key=True)) as server:
        closed_routes(server)
        path = f"{server.url}/v2/repository/models/linear/load"
        assert web.post(path).status_code == 200
        for name in ("origin", "sec-fetch-site"):
            check_error(web.post(path, headers={name: "null"}), 403, "web page")
        assert web.get(f"{server.url}/v2", headers={"origin": "null"}).status_code == 200


def test_an_open_door_beside_keys_is_a_mistake(keys: str) -> None:
    with pytest.raises(ConfigError, match="admin_without_key is set beside api_keys"):
        ServerSettings(admin_without_key=True, api_keys=keys)


# --- wrong tries ------------------------------------------------------------------------------------------------------


def test_wrong_keys_are_429_after_some_and_the_right_one_still_passes(repository: str, keys: str) -> None:
    with BackgroundServer(repository, settings=ServerSettings(api_keys=keys)) as server, httpx.Client() as client:
        found = [
            client.get(
                f"{server.url}/v2", headers={"x-api-key": f"wrong-{number}", "x-forwarded-for": f"10.0.0.{number}"}
            )
            for number in range(100)
        ]
        assert [answer.status_code for answer in found] == [401] * 20 + [429] * 80
        check_error(found[-1], 429, "Too many wrong keys")
        assert found[-1].headers["retry-after"] == "60"
        right = {"authorization": f"Bearer {INFERENCE}"}
        assert client.post(server.url + INFER, content=x(), headers=right).status_code == 200
        assert client.get(f"{server.url}/v2").status_code == 401  # none is not a wrong one


def test_a_hundred_thousand_wrong_keys_let_nobody_in_and_fill_nothing(keys: str) -> None:
    access = Access(Keys(keys))
    access._wrong = WrongTries(lambda: 0.0)
    refused = Counter[int]()
    for number in range(100_000):
        try:
            access.authorise(["/v2"], [(b"x-api-key", b"wrong-%d" % number)], f"10.0.{number % 256}.1")
        except RequestError as error:
            refused[error.status] += 1
    assert refused == {401: 20 * 256, 429: 100_000 - 20 * 256}
    assert len(access._wrong._clients) == 256
    access.authorise(["/v2"], [(b"x-api-key", INFERENCE.encode())], "10.0.0.1")


def test_wrong_tries_are_forgotten_after_a_minute_and_the_table_is_bounded() -> None:
    now = 0.0
    tries = WrongTries(lambda: now)
    assert [tries.count("a") for _ in range(22)] == [False] * 20 + [True] * 2
    assert not tries.count("b")
    now = 61.0
    assert not tries.count("a")
    for number in range(10_000):
        tries.count(str(number))
    assert len(tries._clients) == access._MAX_CLIENTS


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


# --- hosts ------------------------------------------------------------------------------------------------------------


def asked_as(url: str, *hosts: str, path: str = "/v2", version: str = "1.1") -> int:
    lines = [f"GET {path} HTTP/{version}", *(f"Host: {host}" for host in hosts), "Connection: close", "", ""]
    with connect(url) as connection:
        connection.sendall("\r\n".join(lines).encode())
        answer = receive(connection, "GET")
    if answer.status != 200:
        check_error(answer, answer.status, "Host")
    return answer.status


GOOD_HOSTS = ("localhost", "LocalHost:1", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:99")
STRANGE_HOSTS = ("evil.example", "localhost.evil.example", "evil.example:8000", "127.0.0.2", "[::2]", "localhost.")
NO_HOSTS = (
    "", "a/?x=", "a b", "localhost/", "localhost:", "localhost:x", "localhost:123456", "user@localhost", "[::1", "::1",
    "localhost,evil", "http://localhost", "a?b", "a#b", "%6cocalhost", "x" * 300,
)  # fmt: skip


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_names_of_the_loopback_are_taken_there(unguarded: str, host: str) -> None:
    assert asked_as(unguarded, host) == 200


@pytest.mark.parametrize("host", [*STRANGE_HOSTS, *NO_HOSTS])
def test_other_names_are_400_there(unguarded: str, host: str) -> None:
    """A page of theirs would have made its own name lead here."""
    assert asked_as(unguarded, host) == 400
    assert asked_as(unguarded, host, path=INFER) == 400
    assert asked_as(unguarded, host, path="/v2/health/live") == 200  # who probes may not know the name


def test_two_hosts_or_none_are_400(unguarded: str) -> None:
    assert asked_as(unguarded, "localhost", "localhost") == 400
    assert asked_as(unguarded, "localhost", "evil.example") == 400
    assert asked_as(unguarded) == 400
    assert asked_as(unguarded, version="1.0") == 200  # which has no such header


def test_on_every_address_any_name_is_taken_unless_some_are_named(repository: str) -> None:
    with BackgroundServer(repository, host="0.0.0.0") as server:  # noqa: S104
        local = server.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        assert [asked_as(local, host) for host in (*GOOD_HOSTS, *STRANGE_HOSTS)] == [200] * 12
        assert [asked_as(local, host) for host in NO_HOSTS] == [400] * len(NO_HOSTS)
    settings = ServerSettings(allowed_hosts=["models.example", "[::7]"])
    with BackgroundServer(repository, host="0.0.0.0", settings=settings) as server:  # noqa: S104
        local = server.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        for host, status in (("models.example:9", 200), ("MODELS.example", 200), ("[::7]", 200), ("localhost", 400)):
            assert asked_as(local, host) == status


def test_any_name_where_the_operator_says_so(repository: str) -> None:
    with BackgroundServer(repository, settings=ServerSettings(allowed_hosts=["*"])) as server:
        assert asked_as(server.url, "evil.example") == 200


@pytest.mark.parametrize("name", ["", "localhost:80", "http://a", "a b", "*.example.com"])
def test_a_name_that_is_none_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"allowed_hosts has {name!r}")):
        Serving("nowhere", port=0, settings=ServerSettings(allowed_hosts=[name]))


def test_one_name_is_given_as_a_list() -> None:
    with pytest.raises(ConfigError, match="give a list"):
        ServerSettings(allowed_hosts="localhost")


def test_hosts_of_an_address() -> None:
    assert hosts_of("127.0.0.5") == ("localhost", "127.0.0.1", "[::1]", "127.0.0.5")
    assert hosts_of("::1") == ("localhost", "127.0.0.1", "[::1]", "[::1]")
    assert hosts_of("0.0.0.0") is hosts_of("::") is hosts_of("10.0.0.1") is None  # noqa: S104


def test_what_is_remembered_of_good_hosts_is_bounded() -> None:
    hosts = Hosts(None)
    for number in range(1000):
        hosts.check({"headers": [(b"host", f"name-{number}".encode())], "http_version": "1.1"})
    assert len(hosts._good) == 256


@pytest.mark.parametrize("header", ["Origin", "Access-Control-Request-Method"])
def test_no_page_of_another_origin_is_told_that_it_may_read(unguarded: str, header: str) -> None:
    for method in ("GET", "OPTIONS"):
        answer = web.request(method, f"{unguarded}/v2", headers={header: "https://evil.example"})
        assert not any(name.startswith("access-control") for name in answer.headers)


def test_a_path_that_no_client_would_send(unguarded: str) -> None:
    for path in ("//v2", "//v2/models/linear", "/v2/models/linear;x", "/v2/../v2", "/v2/%2e%2e/v2"):
        assert path_only(unguarded, "GET", path).status == 404


def test_wrong_keys_over_grpc_are_refused_with_when_to_try_again(repository: str, keys: str) -> None:
    with BackgroundServer(repository, grpc_port=0, settings=ServerSettings(api_keys=keys)) as server:
        assert refused_over_grpc(server) == (grpc.StatusCode.UNAUTHENTICATED, {"www-authenticate": "Bearer"})
        wrong = [refused_over_grpc(server, ("x-api-key", "wrong")) for _ in range(21)]
    assert wrong[:20] == [(grpc.StatusCode.UNAUTHENTICATED, {"www-authenticate": "Bearer"})] * 20
    assert wrong[20] == (grpc.StatusCode.RESOURCE_EXHAUSTED, {"retry-after": "60"})


def refused_over_grpc(server: BackgroundServer, *metadata: tuple[str, str]) -> tuple[grpc.StatusCode, dict[str, str]]:
    with grpc.insecure_channel(str(server.grpc_address)) as channel:
        method = channel.unary_unary(f"/{messages.SERVICE}/ServerMetadata")
        with pytest.raises(grpc.RpcError) as caught:
            method(b"", metadata=metadata, timeout=30)
    return caught.value.code(), dict(caught.value.trailing_metadata())
