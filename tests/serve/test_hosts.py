"""Names of hosts: which are taken at which address, so that no web page reaches a server by a name of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from serving import check_error, connect, receive, web

from shipline.errors import ConfigError
from shipline.serve.http.gate import Hosts, hosts_of
from shipline.serve.server import BackgroundServer, Serving
from shipline.serve.settings import ServerSettings

INFER = "/v2/models/linear/infer"


@pytest.fixture(scope="module")
def unguarded(repository: str) -> Iterator[str]:
    """A server without keys."""
    with BackgroundServer(repository) as server:
        yield server.url


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
