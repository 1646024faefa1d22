"""Artifacts: versions of a model, channels that point to them, and what a URL leads to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shipline.artifact import CHANNELS, Artifact, ArtifactManifest, Model, ServingSettings, find_artifacts, open_model
from shipline.errors import ConfigError, ExistsError, IntegrityError, NotFoundError, SchemaError
from shipline.signature import Signature, TensorSpec
from shipline.store import Publication, open_store, write_pointers
from shipline.store.commit import MANIFEST

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=(-1, 4)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(-1, 2)),),
)


def describe(name: str, version: str, **fields: Any) -> ArtifactManifest:
    """The manifest of an artifact, with the fields."""
    return ArtifactManifest(
        name=name, version=version, backend="onnxruntime", model_file="model.onnx", precision="float32",
        signature=SIGNATURE, tolerance={"y": 1e-5}, **fields,
    )  # fmt: skip


def publish(model_url: str, version: str) -> None:
    """Commit a version whose model file tells it."""
    model = open_model(model_url)
    with Publication(model.store.at(version)) as publication:
        publication.add("model.onnx", f"model {version}".encode())
        publication.commit(describe(model.name, version))


def leave_unfinished(model_url: str, version: str) -> None:
    """What an export that was killed leaves: files, and no manifest."""
    open_store(model_url).write(f"{version}/data-0123456789ab/model.onnx", b"half a mod")


def found(url: str) -> list[tuple[str, str]]:
    """Names and versions of what the URL leads to, after reading each."""
    artifacts = find_artifacts(url)
    for artifact in artifacts:
        assert artifact.read("model.onnx") == f"model {artifact.manifest.version}".encode()
    return [(artifact.manifest.name, artifact.manifest.version) for artifact in artifacts]


def test_versions_are_numbers_from_the_oldest_on(url: str) -> None:
    for version in ("1", "10", "9", "2"):
        publish(f"{url}/m", version)
    assert open_model(f"{url}/m").versions() == ["1", "2", "9", "10"]


def test_only_committed_versions_count(url: str) -> None:
    publish(f"{url}/m", "1")
    leave_unfinished(f"{url}/m", "2")
    for odd in ("notes.txt", "007/x", "v3/x", "-4/x", "1.5/x"):
        open_store(f"{url}/m").write(odd, b"")
    model = open_model(f"{url}/m")
    assert model.versions() == ["1"]
    assert model.stable().manifest.version == "1"
    with pytest.raises(NotFoundError, match="has no version '2'"):
        model.open("2")


def test_a_version_is_read_back(url: str) -> None:
    publish(f"{url}/m", "3")
    artifact = open_model(f"{url}/m").open("3")
    assert isinstance(artifact, Artifact)
    assert artifact.url == f"{url}/m/3"
    assert artifact.read("model.onnx") == b"model 3"
    assert "processing.json" not in artifact
    assert artifact.manifest.serving == ServingSettings(max_batch_size=32, threads=1)
    assert artifact.manifest.signature == SIGNATURE


def test_a_version_never_changes(url: str) -> None:
    publish(f"{url}/m", "1")
    with pytest.raises(ExistsError, match="m/1 was committed already, and what is committed never changes"):
        publish(f"{url}/m", "1")
    assert found(f"{url}/m/1") == [("m", "1")]


def test_an_unknown_version_lists_those_that_are_known(url: str) -> None:
    model = open_model(f"{url}/m")
    with pytest.raises(NotFoundError, match=r"Model 'm' has no version '7' in .*/m; known: none\."):
        model.open("7")
    for version in ("1", "2"):
        publish(f"{url}/m", version)
    with pytest.raises(NotFoundError, match=r"known: 1, 2\."):
        model.open("7")


@pytest.mark.parametrize("version", ["../1", "1/..", "", " 1", "1/data", "\u0661", "%31"])
def test_a_version_that_is_no_name_is_refused_before_the_store_is_asked(tmp_path: Path, version: str) -> None:
    publish(str(tmp_path / "m"), "1")
    with pytest.raises(ConfigError, match="is no version name"):
        open_model(str(tmp_path / "m")).open(version)


@pytest.mark.parametrize("name", ["..", ".hidden", "a b", "é", "x" * 129, "$(id)"])
def test_a_model_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is no model name"):
        open_model(str(tmp_path / name))
    with pytest.raises(ConfigError, match="is no model name"):
        Model(open_store(str(tmp_path)), name)


@pytest.mark.parametrize("name", ["digits", "2024", "model..1", "a-b_c.D", "x" * 128])
def test_odd_names_that_are_names_work_everywhere(tmp_path: Path, name: str) -> None:
    root = str(tmp_path / "models")
    publish(f"{root}/{name}", "1")
    assert found(root) == found(f"{root}/{name}") == found(f"{root}/{name}/1") == [(name, "1")]


def test_stable_is_the_newest_until_a_channel_says_otherwise(url: str) -> None:
    for version in ("1", "2", "10"):
        publish(f"{url}/m", version)
    model = open_model(f"{url}/m")
    assert model.channels() == {}
    assert model.stable().manifest.version == "10"
    model.point("canary", "1")
    assert model.stable().manifest.version == "10"
    model.point("stable", "2")
    assert model.stable().manifest.version == "2"
    model.point("stable", "1")
    assert model.stable().manifest.version == "1"
    assert model.channels() == {
        "canary": {"version": "1", "weight": 100},
        "stable": {"version": "1", "weight": 100},
    }


def test_another_process_sees_a_channel_at_once(url: str) -> None:
    for version in ("1", "2"):
        publish(f"{url}/m", version)
    server, operator = open_model(f"{url}/m"), open_model(f"{url}/m")
    server.point("stable", "1")
    assert server.stable().manifest.version == "1"
    operator.point("stable", "2")
    assert server.stable().manifest.version == "2"


@pytest.mark.parametrize(
    ("pointer", "message"),
    [
        ({"version": "3"}, "has no version '3' in .*; known: 1, 2"),
        ({"version": 3}, "has no version '3' in .*; known: 1, 2"),
        ({}, "has no version 'None' in .*; known: 1, 2"),
    ],
)
def test_a_channel_that_points_nowhere_never_means_another_version(
    tmp_path: Path, pointer: dict[str, Any], message: str
) -> None:
    for version in ("1", "2"):
        publish(str(tmp_path / "m"), version)
    write_pointers(open_store(tmp_path / "m"), CHANNELS, {"stable": pointer})
    with pytest.raises(NotFoundError, match=message):
        open_model(str(tmp_path / "m")).stable()


def test_a_channel_written_by_hand_may_hold_a_number(tmp_path: Path) -> None:
    for version in ("1", "2"):
        publish(str(tmp_path / "m"), version)
    (tmp_path / "m" / CHANNELS).write_text('{"stable": {"version": 1}}')
    assert found(str(tmp_path / "m")) == [("m", "1")]


def test_a_channel_that_leads_out_of_the_model_is_refused(tmp_path: Path) -> None:
    publish(str(tmp_path / "m"), "1")
    publish(str(tmp_path / "other"), "1")
    write_pointers(open_store(tmp_path / "m"), CHANNELS, {"stable": {"version": "../other/1"}})
    with pytest.raises(ConfigError, match="is no version name"):
        find_artifacts(str(tmp_path / "m"))


@pytest.mark.parametrize("data", [b"", b"null", b'{"stable": "1"}', b"\xff\xfe", b"[" * 100_000])
def test_damaged_channels_are_refused(tmp_path: Path, data: bytes) -> None:
    publish(str(tmp_path / "m"), "1")
    (tmp_path / "m" / CHANNELS).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"channels\.json is damaged: a JSON object of names is expected"):
        find_artifacts(str(tmp_path / "m"))


def test_a_model_without_a_version_says_what_to_do(url: str) -> None:
    with pytest.raises(NotFoundError, match="has no committed version of model 'm'"):
        open_model(f"{url}/m").stable()


def test_a_url_leads_to_a_repository_a_model_or_a_version(url: str) -> None:
    for version in ("1", "2"):
        publish(f"{url}/digits", version)
    publish(f"{url}/faces", "7")
    open_model(f"{url}/digits").point("stable", "1")
    assert found(url) == [("digits", "1"), ("faces", "7")]
    assert found(f"{url}/") == found(url)
    assert found(f"{url}/digits") == [("digits", "1")]
    assert found(f"{url}/digits/2") == [("digits", "2")]
    assert found(f"{url}/digits/2/") == [("digits", "2")]
    assert found(f"{url}/faces") == [("faces", "7")]


def test_a_repository_may_hold_a_model_whose_name_is_a_number(url: str) -> None:
    publish(f"{url}/2024", "1")
    publish(f"{url}/digits", "1")
    assert found(url) == [("2024", "1"), ("digits", "1")]


def test_what_is_no_model_is_passed_over(url: str) -> None:
    publish(f"{url}/digits", "1")
    leave_unfinished(f"{url}/killed", "1")
    for other in ("README.md", "_tmp/x", "runs/version_0/x", ".cache/x"):
        open_store(url).write(other, b"x")
    assert found(url) == [("digits", "1")]


@pytest.mark.parametrize("below", ["", "/killed", "/killed/1", "/nothing"])
def test_where_nothing_was_committed_nothing_is_found(url: str, below: str) -> None:
    leave_unfinished(f"{url}/killed", "1")
    with pytest.raises(NotFoundError, match=r"No artifact below .*; `shipline export` makes one\."):
        find_artifacts(f"{url}{below}")


def test_the_next_export_sweeps_what_an_unfinished_one_left(url: str) -> None:
    leave_unfinished(f"{url}/m", "1")
    publish(f"{url}/m", "1")
    assert found(f"{url}/m") == [("m", "1")]
    names = open_store(f"{url}/m/1").list()
    assert len(names) == 2
    assert "data-0123456789ab" not in names


def test_one_damaged_manifest_stops_the_repository(url: str) -> None:
    """A server that quietly serves one model fewer is worse than one that says why it does not start."""
    publish(f"{url}/digits", "1")
    publish(f"{url}/faces", "1")
    store = open_store(f"{url}/faces/1")
    data = bytearray(store.read(MANIFEST))
    data[len(data) // 2] ^= 1
    store.write(MANIFEST, bytes(data))
    for below in ("", "/faces", "/faces/1"):
        with pytest.raises(IntegrityError, match=r"faces/1/manifest\.json is damaged"):
            find_artifacts(f"{url}{below}")
    assert found(f"{url}/digits") == [("digits", "1")]


def test_a_damaged_old_version_does_not_stop_the_stable_one(tmp_path: Path) -> None:
    for version in ("1", "2"):
        publish(str(tmp_path / "m"), version)
    (tmp_path / "m" / "1" / MANIFEST).write_bytes(b"{}")
    assert found(str(tmp_path / "m")) == [("m", "2")]


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    publish(str(tmp_path / "m"), "1")
    path = tmp_path / "m" / "1" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"schema_version": 2}))
    with pytest.raises(SchemaError, match=r"m/1/manifest\.json has schema version 2; this Shipline reads up to 1"):
        find_artifacts(str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"serving": {"max_batch_size": 0}}, "max_batch_size"),
        ({"serving": {"threads": 0}}, "threads"),
        ({"serving": {"max_batch": 4}}, "Extra inputs"),
        ({"verdicts": [{"gate": "parity", "passed": True}]}, "measured"),
        ({"trust_remote_code": True}, "Extra inputs"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        describe("m", "1", **fields)
