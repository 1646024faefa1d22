"""The model repository extension: the index, and models loaded and unloaded while others answer."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
from helpers import wait_until
from serving import (
    ANYBODY,
    GRAPHS,
    check_error,
    check_works,
    connect,
    gated_server,
    infer,
    path_only,
    post,
    receive,
    tensor,
    web,
)

from shipline.serve.server import BackgroundServer
from shipline.store.store import LocalStore

OTHER = artifacts.linear(seed=1)
#: What each of many who load and unload does.
TURNS = 32


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("linear", "total"):
        artifacts.publish(f"{tmp_path}/{name}", GRAPHS[name])
    return tmp_path


@pytest.fixture
def url(root: Path) -> Iterator[str]:
    with BackgroundServer(str(root), settings=ANYBODY) as server:
        yield server.url


def index(url: str, **body: Any) -> dict[str, tuple[str, str, str]]:
    answer = web.post(f"{url}/v2/repository/index", json=body)
    assert answer.status_code == 200, answer.text
    return {item["name"]: (item["version"], item["state"], item["reason"]) for item in answer.json()}


def do(url: str, verb: str, name: str = "linear", **parameters: Any) -> Any:
    return web.post(f"{url}/v2/repository/models/{name}/{verb}", json={"parameters": parameters})


def y(url: str, path: str = "/v2/models/linear/infer") -> list[float]:
    body = {"inputs": [tensor("x", np.ones((1, 4), np.float32), "FP32")]}
    found: list[float] = web.post(url + path, json=body).json()["outputs"][0]["data"]
    return found


def right(graph: artifacts.Graph) -> Any:
    return pytest.approx(graph.function({"x": np.ones((1, 4), np.float32)})["y"][0], rel=1e-5)


def test_a_model_is_unloaded_and_loaded_again(url: str) -> None:
    assert index(url) == {"linear": ("1", "READY", ""), "total": ("1", "READY", "")}
    assert do(url, "unload").status_code == 200
    assert index(url) == {"linear": ("1", "UNAVAILABLE", "unloaded"), "total": ("1", "READY", "")}
    assert index(url, ready=True) == {"total": ("1", "READY", "")}
    for path in ("/v2/models/linear/infer", "/v2/models/linear/versions/1/infer", "/v1/models/linear:predict"):
        check_error(web.post(url + path, json={}), 404, "no such model")
    assert web.get(f"{url}/v2/health/ready").status_code == 200
    infer(url, "total")
    assert do(url, "load").status_code == 200
    assert index(url)["linear"] == ("1", "READY", "")
    check_works(url)


def test_a_load_takes_what_was_published_since(url: str, root: Path) -> None:
    artifacts.publish(f"{root}/linear", OTHER, version="2")
    artifacts.publish(f"{root}/late", GRAPHS["linear"])
    assert y(url) == right(GRAPHS["linear"])
    assert do(url, "load").status_code == do(url, "load", "late").status_code == 200
    assert y(url) == y(url, "/v2/models/linear/versions/2/infer") == right(OTHER)
    check_error(web.post(f"{url}/v2/models/linear/versions/1/infer", json={}), 404, "no such version")
    assert {name: item[0] for name, item in index(url).items()} == {"late": "1", "linear": "2", "total": "1"}


def test_a_file_of_another_name_is_no_model(url: str, root: Path) -> None:
    (root / "README.md").write_text("Models.")
    check_error(do(url, "load", "README.md"), 404)
    assert "README.md" not in index(url)


def test_what_cannot_be_loaded_leaves_what_was(url: str, root: Path) -> None:
    artifacts.publish(f"{root}/linear", OTHER, version="2", files={"model.onnx": GRAPHS["linear"].model})
    check_error(do(url, "load"), 422, "server's log")
    assert index(url)["linear"] == ("1", "READY", "")
    assert y(url) == right(GRAPHS["linear"])
    artifacts.publish(f"{root}/broken", OTHER, files={"model.onnx": b"no graph"})
    check_error(do(url, "load", "broken"), 422, "server's log")
    assert index(url)["broken"] == ("", "UNAVAILABLE", "it could not be loaded")
    check_error(web.post(f"{url}/v2/models/broken/infer", json={}), 404)


def not_a_number() -> artifacts.Graph:
    """A graph whose every answer is NaN, and so says its golden row."""
    golden = {"x": np.array([[-1.0, -2.0]], np.float32)}
    return replace(artifacts.logarithm(), golden=golden, function=lambda inputs: {"y": inputs["x"] * np.float32("nan")})


@pytest.mark.parametrize("fault", ["a byte flipped", "cut", "a file missing", "NaN", "another signature", "no graph"])
def test_while_a_version_that_is_bad_is_loaded_the_old_one_serves(
    url: str, root: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """S5: every answer under traffic is the old version's, and the log says why."""
    graph, files, fields = OTHER, {}, {}
    if fault == "NaN":
        graph = not_a_number()
    elif fault == "another signature":
        fields["signature"] = artifacts.linear(5).signature
    elif fault == "no graph":
        files["model.onnx"] = b"no graph"
    published = artifacts.publish(f"{root}/linear", graph, version="2", files=files, **fields)
    file = root / "linear" / "2" / published.manifest.files["model.onnx"].key
    data = file.read_bytes()
    if fault == "a byte flipped":
        file.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif fault == "cut":
        file.write_bytes(data[:-1])
    elif fault == "a file missing":
        file.unlink()
    over = threading.Event()

    def ask() -> list[list[float]]:
        found = [y(url)]
        while not over.is_set():
            found.append(y(url))
        return found

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for _ in range(3):
                check_error(do(url, "load"), 422, "server's log")
                assert index(url)["linear"] == ("1", "READY", "")
        finally:
            over.set()
        assert all(found == right(GRAPHS["linear"]) for one in asking for found in one.result())
    assert "Model 'linear' cannot be loaded: " in caplog.text
    check_works(url)


def test_a_model_that_is_not_there_is_404(url: str) -> None:
    for name in ("nobody", "Linear", "x" * 300):
        for verb in ("load", "unload"):
            check_error(do(url, verb, name), 404)
    assert set(index(url)) == {"linear", "total"}


@pytest.mark.parametrize(
    "name",
    ["..", "%2e%2e", "%2e%2e%2f", "..%2f..%2fetc", "%252e", "%5c", "%00", "linear%00", "%20linear", "linear%20",
     "$(id)", ";id", "%0a", "%ef%bc%8e%ef%bc%8e", "file:%2f%2f%2fetc", "http:%2f%2f169.254.169.254", "a%2fb"],
)  # fmt: skip
def test_a_hostile_name_reaches_no_storage(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: Any) -> None:
        raise AssertionError("the storage was asked")

    for method in ("read", "exists", "list"):
        monkeypatch.setattr(LocalStore, method, touched)
    for verb in ("load", "unload"):
        answer = path_only(url, "POST", f"/v2/repository/models/{name}/{verb}", b"{}")
        check_error(answer, 404)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[]", "must be JSON objects"),
        (b'{"parameters": []}', "must be JSON objects"),
        (b"{", "no valid JSON"),
        (b'{"parameters": {"config": "{}"}}', "'config' cannot be set"),
        (b'{"parameters": {"file:1/model.onnx": "AAAA"}}', "'file:1/model.onnx' cannot be set"),
        (b'{"path": "/etc"}', "'path' cannot be set"),
        (b'{"a\\u001b[31m": 1}', r"'a\?\?31m' cannot be set"),
    ],
)
def test_what_a_caller_may_not_choose_is_400(url: str, body: bytes, says: str) -> None:
    for verb in ("load", "unload"):
        check_error(web.post(f"{url}/v2/repository/models/linear/{verb}", content=body), 400, says)
    assert index(url)["linear"] == ("1", "READY", "")


def test_a_large_admin_body_is_413(url: str) -> None:
    check_error(web.post(f"{url}/v2/repository/index", content=b" " * (1 << 20)), 413)
    check_error(web.post(f"{url}/v2/repository/index", json={"ready": "yes"}), 400, "true or false")


def test_what_was_accepted_is_answered_before_a_model_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated_server(tmp_path, monkeypatch) as gated, ThreadPoolExecutor() as pool:
        gated.close_gate()
        asked = [pool.submit(gated.ask, value) for value in (1.0, 2.0)]
        gated.wait_for(2)
        going = pool.submit(do, gated.url, "unload", "gated")
        while index(gated.url)["gated"][1] != "UNLOADING":
            pass
        check_error(gated.ask(3.0), 404)
        check_error(do(gated.url, "load", "gated"), 409, "already")
        assert not going.done()
        gated.backend.gate.set()
        assert [one.result().json()["outputs"][0]["data"] for one in asked] == [[1.0], [2.0]]
        assert going.result().status_code == 200
        assert gated.backend.closed


@pytest.mark.parametrize("headers", [(), ("X-Request-Id: a",)], ids=["short way", "long way"])
def test_a_request_that_is_still_arriving_is_answered_before_a_model_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: tuple[str, ...]
) -> None:
    with gated_server(tmp_path, monkeypatch) as gated, ThreadPoolExecutor() as pool, connect(gated.url) as connection:
        body = json.dumps(gated.body(5.0)).encode()
        data = post("/v2/models/gated/infer", body, *headers)
        connection.sendall(post("/v2/models/gated/infer", body))
        assert receive(connection).status == 200
        connection.sendall(data[:-10])
        wait_until(lambda: gated.model._users == 1)
        going = pool.submit(do, gated.url, "unload", "gated")
        wait_until(lambda: index(gated.url)["gated"][1] == "UNLOADING")
        connection.sendall(data[-10:])
        assert json.loads(receive(connection).content)["outputs"][0]["data"] == [5]
        assert going.result().status_code == 200
        assert gated.backend.closed


def test_a_request_that_never_arrives_keeps_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gated_server(tmp_path, monkeypatch) as gated:
        for headers in ((), ("X-Request-Id: a",)):
            with connect(gated.url) as connection:
                connection.sendall(post("/v2/models/gated/infer", b"{}" * 20, *headers)[:-10])
                wait_until(lambda: gated.model._users == 1)
            wait_until(lambda: gated.model._users == 0)
        assert do(gated.url, "unload", "gated").status_code == 200


def test_nobody_notices_a_model_being_replaced(url: str, root: Path) -> None:
    """A version published, and loaded, again and again under traffic: every answer is one of the two right ones."""
    wrong: list[Any] = []
    asked = 0
    over = threading.Event()
    rights = (right(GRAPHS["linear"]), right(OTHER))

    def ask() -> None:
        nonlocal asked
        while not over.is_set():
            found = y(url)
            asked += 1
            if not any(found == expected for expected in rights):
                wrong.append(found)

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(ask) for _ in range(3)]
        for version in range(2, 12):
            artifacts.publish(f"{root}/linear", (OTHER, GRAPHS["linear"])[version % 2], version=str(version))
            assert do(url, "load").status_code == 200
        over.set()
        for one in asking:
            one.result()
    assert asked > 10
    assert not wrong
    assert y(url) == right(GRAPHS["linear"])


def test_many_who_load_and_unload_at_once_get_only_documented_answers(url: str) -> None:
    """Case 60, a thousand times by 32 clients."""

    def churn(seed: int) -> Counter[int]:
        return Counter(do(url, "load" if (seed + turn) % 2 else "unload").status_code for turn in range(TURNS))

    with ThreadPoolExecutor(32) as pool:
        found = sum(pool.map(churn, range(32)), Counter())
    assert found.keys() <= {200, 404, 409}, found
    assert found.total() == 32 * TURNS
    assert do(url, "load").status_code == 200
    check_works(url)


def test_a_server_of_one_model_knows_no_other(root: Path) -> None:
    for below in ("linear", "linear/1"):
        with BackgroundServer(str(root / below), settings=ANYBODY) as server:
            check_error(do(server.url, "load", "total"), 404)
            assert do(server.url, "unload").status_code == do(server.url, "load").status_code == 200
            infer(server.url)


def test_golden_rows_are_not_counted(root: Path) -> None:
    with BackgroundServer(str(root)) as server:
        stats = web.get(f"{server.url}/v2/models/linear/stats").json()["model_stats"][0]
    assert (stats["inference_count"], stats["execution_count"], stats["last_inference"]) == (0, 0, 0)


def test_configuration_and_statistics(url: str) -> None:
    config = web.get(f"{url}/v2/models/linear/config").json()
    assert (config["name"], config["max_batch_size"], config["backend"]) == ("linear", 8, "onnxruntime")
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
    before = web.get(f"{url}/v2/models/linear/versions/1/stats").json()["model_stats"][0]
    for rows in (1, 3):
        infer(url, rows=rows)
    check_error(web.post(f"{url}/v2/models/linear/infer", content=b"{}"), 400)
    after = web.get(f"{url}/v2/models/linear/stats").json()["model_stats"][0]
    grown = {key: after[key] - before[key] for key in ("inference_count", "execution_count")}
    assert grown == {"inference_count": 4, "execution_count": 2}
    earlier = before["inference_stats"]
    parts = {key: part["count"] - earlier[key]["count"] for key, part in after["inference_stats"].items()}
    assert (parts["success"], parts["fail"], parts["compute_infer"]) == (2, 1, 2)
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert after["last_inference"] > 1.7e12
    everyone = web.get(f"{url}/v2/models/stats").json()["model_stats"]
    assert json.dumps(after) in map(json.dumps, everyone)
    assert {one["name"] for one in everyone} == {"linear", "total"}
    for path in ("/v2/models/nobody/stats", "/v2/models/nobody/config", "/v2/models/linear/versions/9/stats"):
        check_error(web.get(url + path), 404)
