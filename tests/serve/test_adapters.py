"""KServe's first protocol, SageMaker's, and raw inputs in their batch form."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
from serving import GRAPHS, PICTURES, ROWS, TABLE, check_error, check_works, tensor, web

from shipline.serve.server import BackgroundServer

X = [[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 0.0, 2.0]]


def predictions(url: str, model: str, instances: Any) -> Any:
    answer = web.post(f"{url}/v1/models/{model}:predict", json={"instances": instances})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def pictures() -> list[bytes]:
    return [bytes(raw) for raw in PICTURES.inputs]


def alone(url: str, model: str, **body: Any) -> dict[str, Any]:
    """The answer to one raw input asked by itself, without the model's name."""
    answer = web.post(f"{url}/models/{model}/predict", **body)
    assert answer.status_code == 200, answer.text
    return {key: value for key, value in answer.json().items() if not key.startswith("model_")}


def test_instances_of_tensors(url: str) -> None:
    expected = GRAPHS["linear"].function({"x": np.array(X, np.float32)})["y"]
    np.testing.assert_allclose(predictions(url, "linear", X), expected, rtol=1e-5)
    rows = [{"ids": [1, 2, 3], "keep": [True, False, True]}, {"ids": [4, 5, 6], "keep": [False, False, True]}]
    assert predictions(url, "masked", rows) == [
        {"kept": [1, 0, 3], "dropped": [False, True, False]},
        {"kept": [0, 0, 6], "dropped": [True, True, False]},
    ]
    assert predictions(url, "lookup", [0, 1, 0])[0] == predictions(url, "lookup", [0])[0]


def test_instances_of_raw_inputs(url: str) -> None:
    files = [{"b64": base64.b64encode(raw).decode()} for raw in pictures()]
    assert predictions(url, "picture", files) == [alone(url, "picture", content=raw) for raw in pictures()]
    assert predictions(url, "table", ROWS.inputs) == [alone(url, "table", json=row) for row in ROWS.inputs]


@pytest.mark.parametrize(
    ("model", "document", "says"),
    [
        ("linear", [], "JSON object with 'instances'"),
        ("linear", {}, "at least one; got nothing"),
        ("linear", {"instances": []}, "at least one"),
        ("linear", {"instances": 1}, "got a number"),
        ("linear", {"instances": X, "inputs": []}, "JSON object with 'instances'"),
        ("linear", {"instances": [[1, 2, 3]]}, r"shape \[-1, 4\]; got \[1, 3\]"),
        ("linear", {"instances": [[1, 2, 3, 4], [1]]}, "nested lists"),
        ("linear", {"instances": [[1, 2, 3, "4"]]}, "got '4'"),
        ("linear", {"instances": [[1, 2, 3, True]]}, "got True"),
        ("linear", {"instances": [1]}, r"shape \[-1, 4\]; got \[1\]"),
        ("linear", {"instances": [[[]]]}, "shape"),
        ("linear", {"instances": [[1, 2, 3, 4]] * 9}, "1 to 8 rows for this model; got 9"),
        ("masked", {"instances": [{"ids": [1, 2, 3]}]}, "Instance 0 must be an object with ids, keep"),
        ("masked", {"instances": [[1, 2, 3]]}, "Instance 0 must be an object"),
        ("picture", {"instances": ["AAAA"]}, 'Instance 0: This model takes files: send each as {"b64"'),
        ("picture", {"instances": [{"b64": "no base64!"}]}, "Instance 0: 'b64' is no base64"),
        ("picture", {"instances": [{"b64": "AAAA"}]}, "Instance 0: "),
        ("table", {"instances": [ROWS.inputs[0], {"no": 1}]}, "Instance 1: "),
        ("table", {"instances": [ROWS.inputs[0]] * 1025}, "1 to 1024 inputs"),
    ],
)
def test_wrong_instances_are_400(url: str, model: str, document: Any, says: str) -> None:
    check_error(web.post(f"{url}/v1/models/{model}:predict", json=document), 400, says)
    check_works(url)


def test_the_first_protocols_other_paths(url: str) -> None:
    assert set(web.get(f"{url}/v1/models").json()["models"]) >= {"linear", "picture", "table"}
    assert web.get(f"{url}/v1/models/linear").json() == {"name": "linear", "ready": True}
    check_error(web.get(f"{url}/v1/models/nobody"), 404)
    for action in ("nobody:predict", "linear:explain", "linear", "linear:", ":predict"):
        check_error(web.post(f"{url}/v1/models/{action}", json={}), 404)


def test_lines_are_answered_one_by_one_and_one_bad_line_spoils_no_other(url: str) -> None:
    lines = [json.dumps(ROWS.inputs[0]), '{"no": 1}', "no json", json.dumps(ROWS.inputs[1]), ""]
    path, kind = f"{url}/models/table/predict", {"content-type": "application/x-ndjson"}
    answer = web.post(path, content="\n".join(lines), headers=kind)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    first, second, third, fourth = map(json.loads, answer.text.splitlines())
    named = {"model_name": "table", "model_version": "1"}
    assert first == named | alone(url, "table", json=ROWS.inputs[0])
    assert fourth == named | alone(url, "table", json=ROWS.inputs[1])
    assert set(second) == set(third) == {"error"}
    files = "\n".join(json.dumps({"b64": base64.b64encode(raw).decode()}) for raw in pictures())
    found = web.post(f"{url}/models/picture/predict", content=files, headers={"content-type": "application/jsonlines"})
    named = {"model_name": "picture", "model_version": "3"}
    assert list(map(json.loads, found.text.splitlines())) == [
        named | alone(url, "picture", content=raw) for raw in pictures()
    ]


@pytest.mark.parametrize("body", [b"", b"\n\n", b"{}\n" * 1025], ids=["empty", "blank", "too many"])
def test_no_lines_and_too_many_are_400(url: str, body: bytes) -> None:
    answer = web.post(f"{url}/models/table/predict", content=body, headers={"content-type": "application/x-ndjson"})
    check_error(answer, 400, "1 to 1024 inputs")


def test_sagemaker(tmp_path: Path) -> None:
    artifacts.publish(f"{tmp_path}/table", TABLE, raw=ROWS)
    with BackgroundServer(str(tmp_path)) as server:
        url = f"{server.url}/invocations"
        assert web.get(f"{server.url}/ping").status_code == 200
        expected = alone(server.url, "table", json=ROWS.inputs[0])
        raw = web.post(url, json=ROWS.inputs[0]).json()
        assert {key: raw[key] for key in expected} == expected
        assert web.post(url, json={"instances": [ROWS.inputs[0]]}).json() == {"predictions": [expected]}
        features = TABLE.golden[TABLE.signature.inputs[0].name][:1]
        inputs = [tensor(TABLE.signature.inputs[0].name, features, "FP32")]
        assert web.post(url, json={"inputs": inputs}).json()["outputs"][0]["shape"][0] == 1
        check_error(web.post(url, content=b"{"), 400, "no valid JSON")
        check_error(web.get(url), 405)
        check_error(web.post(url, content=b"x", headers={"content-type": "image/png"}), 415)


def test_sagemaker_with_several_models(url: str) -> None:
    check_error(web.post(f"{url}/invocations", json={}), 400, "name one in the header")
    header = "x-amzn-sagemaker-target-model"
    headers = {header: "picture", "content-type": "image/png"}
    found = web.post(f"{url}/invocations", content=pictures()[0], headers=headers)
    assert found.json()["label"] == alone(url, "picture", content=pictures()[0])["label"]
    check_error(web.post(f"{url}/invocations", json={}, headers={header: "../etc"}), 404)


def test_an_answer_of_numbers_as_numpys_file(tmp_path: Path) -> None:
    graph = artifacts.linear(features=TABLE.golden["x"].shape[1], outputs=2)
    raw = artifacts.Raw(type(ROWS.processing)(before=ROWS.processing.before), ROWS.inputs)
    artifacts.publish(f"{tmp_path}/numbers", graph, raw=raw)
    with BackgroundServer(str(tmp_path)) as server:
        path = f"{server.url}/models/numbers/predict"
        expected = web.post(path, json=ROWS.inputs[0]).json()["output"]
        found = web.post(path, json=ROWS.inputs[0], headers={"accept": "application/x-npy"})
        assert found.headers["content-type"] == "application/x-npy"
        np.testing.assert_allclose(np.load(io.BytesIO(found.content), allow_pickle=False), expected, rtol=1e-6)


def test_an_answer_that_is_no_array_is_406_as_one(url: str) -> None:
    found = web.post(f"{url}/models/picture/predict", content=pictures()[0], headers={"accept": "application/x-npy"})
    check_error(found, 406, "no array of numbers")
