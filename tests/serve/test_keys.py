"""Keys: the files that hold them, where a request has one, and wrong tries."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from pathlib import Path

import grpc
import httpx
import pytest
from bad_requests import x
from key_files import ADMIN, INFERENCE, both_keys, key_file
from serving import check_error, web

from shipline.errors import ConfigError
from shipline.serve import access
from shipline.serve.access import Access, WrongTries
from shipline.serve.errors import RequestError
from shipline.serve.grpc import messages
from shipline.serve.keys import Keys, Role
from shipline.serve.server import BackgroundServer, Serving
from shipline.serve.settings import ServerSettings

INFER = "/v2/models/linear/infer"


@pytest.fixture
def keys(tmp_path: Path) -> str:
    return both_keys(tmp_path)


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


def test_an_open_door_beside_keys_is_a_mistake(keys: str) -> None:
    with pytest.raises(ConfigError, match="admin_without_key is set beside api_keys"):
        ServerSettings(admin_without_key=True, api_keys=keys)


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
