"""What models take of the memory is told, and may be limited; and other things that an operator sets for all models."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import artifacts
import pytest
from doubles import IdentityBackend
from grpc_calls import calling
from serving import GRAPHS, check_error, infer, publish_identity, register_double, web

import shipline as sl
from shipline.artifact import find_artifact
from shipline.backends.onnx_gpu import CudaBackend
from shipline.errors import ConfigError, ServingError
from shipline.serve.hosting import Hosting
from shipline.serve.memory import Memory, resident
from shipline.serve.model import ServedModel
from shipline.serve.server import BackgroundServer

ROOM = sl.ServerSettings(admin_without_key=True, memory_mib=100_000)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("linear", "total"):
        artifacts.publish(f"{tmp_path}/{name}", GRAPHS[name])
    return tmp_path


def stats(url: str, model: str) -> dict[str, Any]:
    found: dict[str, Any] = web.get(f"{url}/v2/models/{model}/stats").json()["model_stats"][0]
    return found


def test_what_a_model_takes_and_a_load_for_which_there_is_no_memory(repository: Path) -> None:
    with BackgroundServer(str(repository), grpc_port=0, settings=ROOM) as server:
        memory, url = server._serving._app.hosting.memory, server.url
        (usage,) = stats(url, "linear")["memory_usage"]
        assert usage["byte_size"] >= len(GRAPHS["linear"].model)
        told = dict(re.findall(r'shipline_model_bytes{model="linear",of="(\w+)",version="1"} (\S+)', metrics(url)))
        assert float(told["file"]) == len(GRAPHS["linear"].model)
        assert (
            float(told["memory"]) == usage["byte_size"] == memory._taken[server._serving._app.repository.get("linear")]
        )
        load = f"{url}/v2/repository/models/total/load"
        memory._limit = 1
        check_error(
            web.post(load), 507, r"Model 'total' takes at least .*; memory_mib is .* Unload another model first"
        )
        with calling(server.grpc_address) as caller, pytest.raises(Exception, match="RESOURCE_EXHAUSTED"):
            caller.call("RepositoryModelLoad", model_name="total")
        infer(url, "total")  # what served before still does
        for model in ("linear", "total"):
            assert web.post(f"{url}/v2/repository/models/{model}/unload").status_code == 200
        assert not memory._taken
        assert float(re.findall(r'shipline_model_bytes{model="linear",of="memory".*} (\S+)', metrics(url))[0]) == 0
        memory._limit = 1 << 40
        assert web.post(load).status_code == 200


def metrics(url: str) -> str:
    return str(web.get(f"{url}/metrics").text)


def test_a_start_for_which_there_is_no_memory(repository: Path) -> None:
    server = BackgroundServer(str(repository), settings=sl.ServerSettings(memory_mib=1e-6))
    with pytest.raises(ServingError, match=r"memory_mib is 0\.000"), server:
        pass


def test_what_is_refused_when_it_is_loaded_gives_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much it takes is known then alone."""
    register_double(monkeypatch)
    publish_identity(tmp_path / "gated")
    closed: list[IdentityBackend] = []
    sizes = iter([0, 2 << 20])
    monkeypatch.setattr("shipline.serve.model.resident", lambda: next(sizes))
    monkeypatch.setattr(IdentityBackend, "close", lambda backend: closed.append(backend))
    hosting = Hosting(memory=Memory(1 << 20))
    with pytest.raises(ServingError, match=r"Model 'gated' takes at least 2 MiB"):
        asyncio.run(ServedModel.load(find_artifact(str(tmp_path), "gated"), hosting))
    assert len(closed) == 1
    assert not hosting.memory._taken
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shipline-backend")]


def test_a_version_that_is_loaded_again_is_ready_in_the_metrics(repository: Path) -> None:
    """Also when the one that it replaces has gone."""
    with BackgroundServer(str(repository), settings=ROOM) as server:
        before = server._serving._app.repository.get("linear")
        assert web.post(f"{server.url}/v2/repository/models/linear/load").status_code == 200
        assert server._serving._app.repository.get("linear") is not before
        labels = 'model="linear",version="1"'
        assert f"shipline_model_ready{{{labels}}} 1.0" in metrics(server.url)
        assert 'shipline_model_bytes{model="linear",of="memory",version="1"} 0.0' not in metrics(server.url)
        assert web.post(f"{server.url}/v2/repository/models/linear/unload").status_code == 200
        assert f"shipline_model_ready{{{labels}}} 0.0" in metrics(server.url)
        assert 'shipline_model_bytes{model="linear",of="memory",version="1"} 0.0' in metrics(server.url)


def test_the_limit_is_for_all_together() -> None:
    memory = Memory(100)
    memory.take("a", 60)
    memory.check("b", 40)
    with pytest.raises(ServingError, match="Model 'b' takes at least"):
        memory.check("b", 41)
    memory.give_back("a")
    memory.give_back("a")
    memory.check("b", 100)


def test_memory_of_a_process() -> None:
    assert resident() > 10 << 20
    assert resident(2**22 + 1) == 0  # there is none


def test_the_delay_is_told(repository: Path) -> None:
    with BackgroundServer(str(repository), settings=sl.ServerSettings(batch_delay_ms=2.5)) as server:
        config = web.get(f"{server.url}/v2/models/linear/config").json()
        assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 2500
        infer(server.url)


@pytest.mark.parametrize(("device", "kind"), [("cpu", "KIND_CPU"), ("cuda", "KIND_GPU")])
def test_models_are_where_the_operator_says(
    repository: Path, device: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the CPU in the place of the GPU, all but what computes is the same."""
    monkeypatch.setattr(CudaBackend, "_providers", lambda *_: ["CPUExecutionProvider"])
    monkeypatch.setattr(CudaBackend, "provider", "CPUExecutionProvider")
    monkeypatch.setattr(CudaBackend, "memory", "cpu")
    with BackgroundServer(str(repository), settings=sl.ServerSettings(device=device)) as server:
        assert web.get(f"{server.url}/v2/models/linear/config").json()["instance_group"][0]["kind"] == kind
        infer(server.url)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"batch_delay_ms": -1.0}, "batch_delay_ms is -1.0; choose one from 0 to 1000"),
        ({"batch_delay_ms": 1e6}, "choose one from 0 to 1000"),
        ({"device": "cuda:1"}, "Unknown device 'cuda:1'. Did you mean 'cuda'"),
        ({"memory_mib": 0.0}, "memory_mib is 0.0; choose one above 0"),
    ],
)
def test_settings_that_are_none(setting: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        sl.ServerSettings(**setting)  # type: ignore[arg-type]


def test_the_description_is_made_when_models_change(repository: Path) -> None:
    with BackgroundServer(str(repository), settings=ROOM) as server:
        described = server._serving._app.openapi
        before = web.get(f"{server.url}/openapi.json").json()
        assert described() is described()
        assert before["paths"]["/v1/models/linear:predict"]["post"]["requestBody"]["content"]["application/json"][
            "example"
        ]
        assert web.post(f"{server.url}/v2/repository/models/linear/unload").status_code == 200
        after = web.get(f"{server.url}/openapi.json").json()
        assert set(before["paths"]) - set(after["paths"]) == {"/v2/models/linear/infer", "/v1/models/linear:predict"}
