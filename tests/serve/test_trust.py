"""Models that hold code are served from where the operator trusts it, and from nowhere else."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import artifacts
import numpy as np
import pytest
import torch_files
from command_line import in_process
from serving import check_error, register_double, tensor, web

from shipline.artifact import ServingSettings
from shipline.commands import main
from shipline.errors import ConfigError, ServingError
from shipline.serve.server import BackgroundServer
from shipline.serve.trust import Trust


@pytest.mark.parametrize(
    ("prefix", "url", "covered"),
    [
        ("s3://bucket/models", "s3://bucket/models", True),
        ("s3://bucket/models/", "s3://bucket/models/digits/1", True),
        ("s3://bucket", "s3://bucket/models/digits/1", True),
        ("s3://bucket/models", "s3://bucket/models-evil/digits/1", False),
        ("s3://bucket/models", "s3://bucket-evil/models/digits/1", False),
        ("s3://bucket/models", "s3://bucket/models/../evil/1", False),
        ("s3://bucket/models", "s3://bucket/models/./1", False),
        ("s3://bucket/models", "s3://bucket//models/1", False),
        ("s3://bucket/models", "gs://bucket/models/1", False),
        ("s3://bucket/models/digits", "s3://bucket/models", False),
        ("s3://key:secret@bucket/models", "s3://bucket/models/1", True),
        ("/srv/models", "/srv/models/digits/1", True),
        ("file:///srv/models", "/srv/models/digits/1", True),
        ("/srv/models", "file:///srv/models/digits/1", True),
        ("/srv/models", "/srv/models-evil/digits/1", False),
        ("/srv/models", "/srv/models/../evil/1", False),
        ("/srv/models", "s3://srv/models/1", False),
        ("/", "/srv/models/digits/1", True),
    ],
)
def test_a_prefix_covers_what_is_below_it(prefix: str, url: str, covered: bool) -> None:
    assert Trust([prefix]).covers(url) is covered


def test_nothing_is_trusted_by_itself() -> None:
    assert not Trust().covers("/srv/models")


def test_links_count_by_where_they_lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good", "evil"):
        (tmp_path / name).mkdir()
    (tmp_path / "good" / "link").symlink_to(tmp_path / "evil")
    (tmp_path / "other").symlink_to(tmp_path / "good")
    monkeypatch.chdir(tmp_path)
    trust = Trust(["good"])
    assert not trust.covers(f"{tmp_path}/good/link")
    assert trust.covers("other/model/1")
    assert Trust(["other"]).covers("good/model/1")


@pytest.mark.parametrize("prefix", ["", "s3://", "s3:///models", "s3://bucket/../other"])
def test_a_prefix_that_names_no_directory_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="give the URL of a directory"):
        Trust([prefix])


def test_a_text_is_no_list_of_prefixes() -> None:
    """Its letters would be taken for directories, `/` among them."""
    with pytest.raises(ConfigError, match=r"give a list of URLs, such as \['/srv/models'\]"):
        Trust("/srv/models")


def test_code_is_loaded_only_with_trust(tmp_path: Path) -> None:
    torch_files.publish(f"{tmp_path}/models/mixed")
    (tmp_path / "models-too").mkdir()
    for trust in ([], [f"{tmp_path}/model"], [f"{tmp_path}/models-too"]):
        with (
            pytest.raises(ServingError, match=r"holds code: model.ts is made for 'torchscript'.*--trust \S+/mixed$"),
            BackgroundServer(f"{tmp_path}/models", trust=trust),
        ):
            pass
    with BackgroundServer(f"{tmp_path}/models", trust=["/nowhere", f"{tmp_path}/models"]) as server:
        sent = torch_files.inputs_of(2)
        types = {"x": "FP32", "ids": "INT64", "keep": "BOOL", "index": "INT64"}
        body = {"inputs": [tensor(name, array, types[name]) for name, array in sent.items()]}
        answer = web.post(f"{server.url}/v2/models/mixed/infer", json=body)
        found = {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in answer.json()["outputs"]}
        for name, want in torch_files.mixed_in_numpy(sent).items():
            np.testing.assert_allclose(found[name], want, rtol=1e-5)
        assert web.get(f"{server.url}/v2/models/mixed").json()["platform"] == "torchscript_ts"


def test_it_is_refused_in_a_remote_store_too() -> None:
    root = f"memory://{uuid.uuid4().hex}"
    torch_files.publish(f"{root}/models/mixed")
    with (
        pytest.raises(ServingError, match=f"--trust {root}/models/mixed"),
        BackgroundServer(f"{root}/models", trust=[f"{root}/models-too"]),
    ):
        pass
    with BackgroundServer(f"{root}/models", trust=[f"{root}/models"]) as server:
        assert web.get(f"{server.url}/v2/models/mixed/ready").status_code == 200


def test_the_command_says_which_flag_to_give(tmp_path: Path) -> None:
    torch_files.publish(f"{tmp_path}/models/mixed")
    outcome = in_process("serve", f"{tmp_path}/models", "--port", "0", "--trust", "/nowhere")
    assert outcome.code == 1
    assert f"add --trust {tmp_path}/models/mixed" in outcome.err


def test_the_flag_may_be_given_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr("shipline.serve.server.serve", lambda url, **settings: seen.update(settings, url=url))
    assert main(["serve", "--trust", "/a", "models", "--trust", "s3://b/c"]) == 0
    assert (seen["url"], seen["trust"]) == ("models", ["/a", "s3://b/c"])


def test_what_holds_no_code_needs_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_double(monkeypatch)
    artifacts.publish(f"{tmp_path}/linear", artifacts.linear())
    with BackgroundServer(str(tmp_path)) as server:
        assert web.get(f"{server.url}/v2/health/ready").status_code == 200


def test_values_that_a_runtime_does_not_compute_with_are_the_clients_fault(tmp_path: Path) -> None:
    settings = ServingSettings(max_batch_size=8)
    artifacts.publish(f"{tmp_path}/masked", artifacts.masked(), backend="openvino", serving=settings)

    def body(number: int) -> dict[str, Any]:
        ids, keep = np.array([[number, 0, 0]]), np.ones((1, 3), bool)
        return {"inputs": [tensor("ids", ids, "INT64"), tensor("keep", keep, "BOOL")]}

    with BackgroundServer(str(tmp_path)) as server:
        url = f"{server.url}/v2/models/masked/infer"
        check_error(
            web.post(url, json=body(1 << 40)), 400, f"'ids' holds {1 << 40}; OpenVINO computes whole numbers in 32"
        )
        assert web.post(url, json=body(7)).json()["outputs"][0]["data"] == [7, 0, 0]
