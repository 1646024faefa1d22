"""Over HTTP: health, metadata, predictions, docs and metrics of a real server."""

from __future__ import annotations

import base64
import re
from typing import Any

import artifacts
import httpx
import numpy as np
import pytest
from serving import GRAPHS, PICTURE, PICTURES, ROWS, TABLE, check_error, check_works, infer, tensor, web

import shipline
from shipline.serve.description import EXTENSIONS
from shipline.signature import OIP_DATATYPES


def get(url: str, path: str) -> Any:
    answer = web.get(url + path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def test_health(url: str) -> None:
    assert get(url, "/v2/health/live") == {"live": True}
    assert get(url, "/v2/health/ready") == {"ready": True}


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_server_metadata(url: str, path: str) -> None:
    assert get(url, path) == {"name": "shipline", "version": shipline.__version__, "extensions": list(EXTENSIONS)}


@pytest.mark.parametrize("path", ["/v2/models/masked", "/v2/models/masked/versions/1"])
def test_model_metadata_shows_signature_verdicts_and_lineage(url: str, path: str) -> None:
    found = get(url, path)
    assert (found["name"], found["versions"], found["platform"]) == ("masked", ["1"], "onnxruntime_onnx")
    assert found["inputs"] == [
        {"name": "ids", "datatype": "INT64", "shape": [-1, 3]},
        {"name": "keep", "datatype": "BOOL", "shape": [-1, 3]},
    ]
    assert found["outputs"] == [
        {"name": "kept", "datatype": "INT64", "shape": [-1, 3]},
        {"name": "dropped", "datatype": "BOOL", "shape": [-1, 3]},
    ]
    more = found["parameters"]
    assert re.fullmatch("[0-9a-f]{64}", more["digest"])
    assert (more["precision"], more["max_batch_size"], more["metrics"]) == ("float32", 8, {"val_acc": 0.98})
    assert more["tolerance"] == {"kept": 1e-5, "dropped": 1e-5}
    assert more["verdicts"] == [
        {"gate": "parity", "passed": True, "measured": 1e-7, "limit": 1e-5, "message": "equal enough"}
    ]
    assert (more["lineage"]["git_commit"], more["lineage"]["seed"]) == ("c0ffee", 7)
    assert more["lineage"]["checkpoint_digest"] == "d" * 64
    assert "/private/runs" not in web.get(url + path).text  # where the checkpoint lies is nobody's business


@pytest.mark.parametrize("path", ["/v2/models/picture/ready", "/v2/models/picture/versions/3/ready"])
def test_model_ready(url: str, path: str) -> None:
    assert get(url, path) == {"name": "picture", "ready": True}


@pytest.mark.parametrize("model", GRAPHS)
@pytest.mark.parametrize("version", ["", "/versions/1"])
def test_infer_gives_the_graphs_numbers(url: str, model: str, version: str) -> None:
    graph = GRAPHS[model]
    inputs = [tensor(spec.name, graph.golden[spec.name], spec.datatype) for spec in graph.signature.inputs]
    answer = web.post(f"{url}/v2/models/{model}{version}/infer", json={"id": "a-1", "inputs": inputs})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert (document["model_name"], document["model_version"], document["id"]) == (model, "1", "a-1")
    expected = graph.function(graph.golden)
    assert [output["name"] for output in document["outputs"]] == list(expected)
    for output in document["outputs"]:
        want = expected[output["name"]]
        assert (output["shape"], output["datatype"]) == (list(want.shape), OIP_DATATYPES[want.dtype.name])
        np.testing.assert_allclose(np.array(output["data"]).reshape(want.shape), want, rtol=1e-5)


def test_one_of_several_outputs_is_chosen(url: str) -> None:
    graph = GRAPHS["masked"]
    inputs = [tensor(spec.name, graph.golden[spec.name], spec.datatype) for spec in graph.signature.inputs]
    answer = web.post(f"{url}/v2/models/masked/infer", json={"inputs": inputs, "outputs": [{"name": "dropped"}]})
    assert [output["name"] for output in answer.json()["outputs"]] == ["dropped"]


def test_what_json_cannot_hold_is_null(url: str) -> None:
    inputs = [tensor("x", np.array([[-1, 0], [1, 2]], np.float32), "FP32")]
    answer = web.post(f"{url}/v2/models/logarithm/infer", json={"inputs": inputs})
    assert answer.status_code == 200
    assert answer.json()["outputs"][0]["data"] == [None, None, 0.0, pytest.approx(np.log(2))]


@pytest.mark.parametrize("width", [1, 7, 100_000])
def test_rows_are_as_long_as_the_signature_allows(url: str, width: int) -> None:
    """The last one is parsed off the event loop."""
    inputs = [tensor("x", np.full((2, width), 0.5, np.float32), "FP32")]
    answer = web.post(f"{url}/v2/models/total/infer", json={"inputs": inputs})
    assert answer.json()["outputs"][0]["data"] == [width / 2, width / 2]


@pytest.mark.parametrize("content_type", ["image/png", "image/x-anything", "application/octet-stream", None])
@pytest.mark.parametrize("path", ["/models/picture/predict", "/models/picture/versions/3/predict"])
def test_predict_takes_the_bytes_of_a_picture(url: str, path: str, content_type: str | None) -> None:
    for number, picture in enumerate(PICTURES.inputs):
        headers = {} if content_type is None else {"content-type": content_type}
        answer = web.post(url + path, content=picture, headers=headers)
        assert answer.status_code == 200, answer.text
        check_answer(answer.json(), "picture", "3", artifacts.answers_of(PICTURE, PICTURES, PICTURES.inputs)[number])


def test_predict_takes_a_large_picture(url: str) -> None:
    """Decoded off the event loop."""
    picture = artifacts.png(7, size=800)
    assert len(picture) > 256 << 10
    answer = web.post(f"{url}/models/picture/predict", content=picture)
    check_answer(answer.json(), "picture", "3", artifacts.answers_of(PICTURE, PICTURES, [picture])[0])


@pytest.mark.parametrize("path", ["/models/table/predict", "/models/table/versions/1/predict"])
def test_predict_takes_a_row_as_json(url: str, path: str) -> None:
    for row, expected in zip(ROWS.inputs, artifacts.answers_of(TABLE, ROWS, ROWS.inputs), strict=True):
        check_answer(web.post(url + path, json=row).json(), "table", "1", expected)


def check_answer(found: dict[str, Any], model: str, version: str, expected: dict[str, Any]) -> None:
    assert found == {
        "model_name": model,
        "model_version": version,
        "label": expected["label"],
        "score": pytest.approx(expected["score"], rel=1e-4),
        "scores": pytest.approx(expected["scores"], rel=1e-4, abs=1e-9),
    }
    assert next(iter(found["scores"])) == found["label"]


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/v2/models/linear/infer", None),
        ("/v2/models/linear/infer", "application/json"),
        ("/v2/models/linear/infer", "Application/JSON; charset=utf-8"),
        ("/models/table/predict", None),
        ("/models/table/predict", "application/json;charset=UTF-8"),
    ],
)
def test_json_is_taken_with_its_media_type_and_without_any(url: str, path: str, content_type: str | None) -> None:
    body: Any = ROWS.inputs[0]
    if path.endswith("infer"):
        body = {"inputs": [tensor("x", GRAPHS["linear"].golden["x"], "FP32")]}
    content = httpx.Request("POST", url, json=body).content
    answer = web.post(
        url + path, content=content, headers={} if content_type is None else {"content-type": content_type}
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain", "text/plain; charset=utf-8", "application/x-www-form-urlencoded", "multipart/form-data",
        "multipart/form-data; boundary=" + "b" * 5000, "application/jsonp", "application/x-pickle", "application/xml",
        "application/x-pytorch", "x", "", ";", "application/json, text/plain",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v2/models/linear/infer", "/models/table/predict", "/models/picture/predict"])
def test_a_wrong_media_type_is_415(url: str, path: str, content_type: str) -> None:
    check_error(web.post(url + path, content=b"{}", headers={"content-type": content_type}), 415, "^Send ")
    check_works(url)


def test_a_picture_is_not_taken_as_json_nor_the_other_way_round(url: str) -> None:
    check_error(web.post(f"{url}/models/picture/predict", json={}), 415, "image file, as image/png for example")
    for path in ("/models/table/predict", "/v2/models/picture/infer"):
        check_error(web.post(url + path, content=b"", headers={"content-type": "image/png"}), 415, "application/json")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "identity, gzip", "x"])
@pytest.mark.parametrize("path", ["/v2/models/linear/infer", "/models/picture/predict"])
def test_an_unknown_encoding_is_415(url: str, path: str, encoding: str) -> None:
    answer = web.post(url + path, content=b"\x1f\x8b" * 50, headers={"content-encoding": encoding})
    check_error(answer, 415, "packed once by gzip or deflate")
    check_works(url)


def test_the_identity_encoding_is_none(url: str) -> None:
    answer = web.post(
        f"{url}/models/picture/predict", content=artifacts.png(0), headers={"content-encoding": "Identity"}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nothing/here"),
        ("GET", "/v2/nothing"),
        ("GET", "/v2/health"),
        ("GET", "/v2/health/live/"),
        ("GET", "/v2/models"),
        ("GET", "/v2/models/"),
        ("GET", "/v2/models/nobody"),
        ("GET", "/v2/models/nobody/ready"),
        ("GET", "/v2/models/Linear"),
        ("GET", "/v2/models/linear/versions/2"),
        ("GET", "/v2/models/linear/versions/2/ready"),
        ("GET", "/v2/models/linear/versions/01"),
        ("GET", "/v2/models/linear/versions/"),
        ("POST", "/v2/models/nobody/infer"),
        ("POST", "/v2/models/nobody/versions/1/infer"),
        ("POST", "/v2/models/linear/versions/2/infer"),
        ("POST", "/v2/models/linear/versions/1.0/infer"),
        ("POST", "/v2/models/linear/infer/"),
        ("POST", "/v2//models/linear/infer"),
        ("POST", "/v2/models/linear;x=1/infer"),
        ("POST", "/models/nobody/predict"),
        ("POST", "/models/picture/versions/1/predict"),
    ],
)
def test_what_is_not_there_is_404(url: str, method: str, path: str) -> None:
    check_error(web.request(method, url + path), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *((method, "/v2/models/linear/infer") for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")),
        *((method, "/models/picture/predict") for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")),
        ("GET", "/v2/models/nobody/infer"),
        ("POST", "/v2/models/linear"),
        ("DELETE", "/v2/models/linear"),
        ("POST", "/v2/health/ready"),
        ("POST", "/metrics"),
        ("PUT", "/v2"),
    ],
)
def test_a_wrong_method_is_405_and_names_the_right_one(url: str, method: str, path: str) -> None:
    answer = web.request(method, url + path)
    check_error(answer, 405)
    assert answer.headers["allow"] in ("GET", "POST")
    check_works(url)


def test_a_model_without_processing_says_where_tensors_go(url: str) -> None:
    check_error(web.post(f"{url}/models/linear/predict", json=[1]), 400, "send tensors to its infer endpoint")


@pytest.mark.parametrize(("rows", "says"), [(9, "1 to 8 rows for this model; got 9"), (1000, "got 1000")])
def test_more_rows_than_a_batch_holds_are_refused(url: str, rows: int, says: str) -> None:
    inputs = [tensor("x", np.zeros((rows, 4), np.float32), "FP32")]
    check_error(web.post(f"{url}/v2/models/linear/infer", json={"inputs": inputs}), 400, says)
    infer(url, rows=8)


@pytest.mark.parametrize(
    ("given", "echoed"),
    [
        ("a", True), ("Request-1.2_3", True), ("x" * 64, True), ("x" * 65, False), ("x" * 10_000, False), ("", False),
        ("a b", False), ("../x", False), ("http://x", False), ("é".encode().decode("latin-1"), False),
        ("<script>", False), ("${jndi:x}", False), ("a\tb", False), ("a,b", False), ("%0d%0a", False),
    ],
)  # fmt: skip
def test_a_plain_request_id_is_echoed_and_another_replaced(url: str, given: str, echoed: bool) -> None:
    headers = {b"x-request-id": given.encode("latin-1")}
    good = web.post(f"{url}/models/picture/predict", content=artifacts.png(0), headers=headers)
    bad = web.post(f"{url}/models/picture/predict", content=b"no", headers=headers)
    missing = web.get(f"{url}/nowhere", headers=headers)
    assert good.status_code == 200
    check_error(bad, 400)
    check_error(missing, 404)
    for answer in (good, bad, missing):
        identity = answer.headers["x-request-id"]
        assert identity == given if echoed else re.fullmatch("[0-9a-f]{32}", identity)


def test_errors_without_a_request_id_get_different_ones(url: str) -> None:
    found = {web.get(f"{url}/nowhere").json()["id"] for _ in range(3)}
    assert len(found) == 3


def counters(url: str) -> dict[str, float]:
    """Every sample of /metrics."""
    answer = web.get(f"{url}/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_metrics_count_requests_rows_and_batches(url: str) -> None:
    before = counters(url)
    infer(url, rows=3)
    web.post(f"{url}/v2/models/linear/infer", content=b"no json")
    web.post(f"{url}/v2/models/nobody/infer", content=b"no json")
    web.get(f"{url}/v2/models/{'x' * 100}")
    after = counters(url)
    model, endpoint = 'model="linear",version="1"', 'endpoint="infer",model="linear"'
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    grown = {name: value for name, value in grown.items() if "_created" not in name and "_seconds" not in name}
    assert grown == {
        f'shipline_requests_total{{{endpoint},status="200",version="1"}}': 1,
        f'shipline_requests_total{{{endpoint},status="400",version="1"}}': 1,
        f"shipline_batch_rows_count{{{model}}}": 1,
        f"shipline_batch_rows_sum{{{model}}}": 3,
        **{
            f'shipline_batch_rows_bucket{{le="{le}",{model}}}': 1
            for le in ("4.0", "8.0", "16.0", "32.0", "64.0", "128.0", "256.0", "+Inf")
        },
    }
    assert after[f"shipline_model_ready{{{model}}}"] == 1
    for name in ("shipline_queue_seconds", "shipline_compute_seconds"):
        assert after[f"{name}_count{{{model}}}"] == before[f"{name}_count{{{model}}}"] + 1
    seconds = f'shipline_request_seconds_count{{endpoint="infer",{model}}}'
    assert after[seconds] == before[seconds] + 2


def test_every_model_that_is_served_is_counted_as_ready(url: str) -> None:
    ready = {name for name, value in counters(url).items() if name.startswith("shipline_model_ready") and value == 1}
    assert len(ready) == len(GRAPHS) + 2


def test_every_example_in_the_docs_works_and_gives_what_they_say(url: str) -> None:
    document = get(url, "/openapi.json")
    sent = set()
    for path, operations in document["paths"].items():
        for media_type, content in operations.get("post", {}).get("requestBody", {}).get("content", {}).items():
            answers = operations["post"]["responses"]["200"]["content"]["application/json"]
            body = {"json": content["example"]} if "example" in content else {"content": PICTURES.inputs[0]}
            headers = {} if "example" in content else {"content-type": media_type.replace("*", "png")}
            answer = web.post(url + path, headers=headers, **body)
            assert answer.status_code == 200, (path, answer.text)
            check_like(answer.json(), answers["example"], path)
            sent.add(path)
    assert sent == {
        *(f"/v2/models/{name}/infer" for name in (*GRAPHS, "picture", "table")),
        *(f"/v1/models/{name}:predict" for name in (*GRAPHS, "picture", "table")),
        *(f"/models/{name}/predict" for name in ("picture", "table")),
    }


def check_like(found: Any, documented: Any, where: str) -> None:
    """Equal, but for the last digits of numbers."""
    if isinstance(documented, dict):
        assert found.keys() == documented.keys(), where
        for name, value in documented.items():
            check_like(found[name], value, f"{where}: {name}")
    elif isinstance(documented, list):
        assert len(found) == len(documented), where
        for one, other in zip(found, documented, strict=True):
            check_like(one, other, where)
    else:
        assert found == (pytest.approx(documented, rel=1e-4) if isinstance(documented, float) else documented), where


def test_the_docs_list_every_route(url: str) -> None:
    paths = get(url, "/openapi.json")["paths"]
    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/metrics",
        "/v2/models/{name}",
        "/v2/models/{name}/ready",
    ):
        assert "get" in paths[path]
    assert web.get(f"{url}/docs").status_code == 200


def test_the_golden_pictures_of_the_artifact_are_those_that_were_published() -> None:
    """The docs' example of a picture cannot stand in JSON; the test above sends the first of these instead."""
    assert (
        base64.b64encode(PICTURES.inputs[0]).decode()
        in artifacts.artifact_files(PICTURE, PICTURES)["golden.json"].decode()
    )
