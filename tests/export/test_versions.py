"""Versions of a model: how exports count them up, on every kind of store, at once with others and where one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from exported import FILES, tree

import shipline as sl
from shipline.artifact import Artifact, Model, open_model
from shipline.errors import ConfigError, ExistsError, NotFoundError, StoreError
from shipline.export import exporter
from shipline.store import Publication, open_store
from shipline.store.commit import MANIFEST
from shipline.store.store import LocalStore

Publish = Callable[..., Artifact]


def test_versions_count_up_and_stable_is_the_newest_export(url: str, publish: Publish) -> None:
    model = open_model(f"{url}/m")
    for version in ("1", "2"):
        artifact = publish(f"{url}/m")
        assert (artifact.manifest.name, artifact.manifest.version) == ("m", version)
        assert model.stable().manifest == artifact.manifest
    assert publish(f"{url}/m", "41").manifest.version == "41"
    assert publish(f"{url}/m").manifest.version == "42"
    assert model.versions() == ["1", "2", "41", "42"]
    assert model.channels() == {"stable": {"version": "42", "weight": 100}}


def test_a_version_that_exists_is_refused(url: str, publish: Publish) -> None:
    first = publish(f"{url}/m", "7")
    with pytest.raises(ExistsError, match="m has version 7 already"):
        publish(f"{url}/m", "7")
    assert open_model(f"{url}/m").open("7").manifest == first.manifest
    assert len(open_store(f"{url}/m/7").list()) == 2


@pytest.mark.parametrize("version", ["v1", "1.0", "-1", "", " 1", "007", "٣", "latest", "../1", "1" * 40])
def test_what_is_no_version_is_refused_before_anything_else(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(exporter, "prove", lambda *_: pytest.fail("it was proved"))
    with pytest.raises(ConfigError, match="versions are numbers"):
        exporter.export(source, sl.Recipe(), open_model(str(tmp_path / "m")), version)


def test_a_bucket_that_is_not_there_is_refused_before_anything_else(
    source: Any, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "prove", lambda *_: pytest.fail("it was proved"))
    with pytest.raises(StoreError, match="Cannot list s3://bucket-of-nobody/m: the bucket does not exist"):
        exporter.export(source, sl.Recipe(), open_model("s3://bucket-of-nobody/m"))


def at_once(publish: Publish, url: str, version: str | None) -> tuple[list[Artifact], list[Exception]]:
    """Two exports, each in a thread."""
    published: list[Artifact] = []
    failed: list[Exception] = []

    def export() -> None:
        try:
            published.append(publish(url, version))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=export) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return published, failed


def test_two_exports_at_once_get_different_versions(
    url: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see an empty model before either commits."""
    both, versions, looked = threading.Barrier(2), Model.versions, threading.local()

    def look(model: Model) -> list[str]:
        found = versions(model)
        if not getattr(looked, "before", False):
            looked.before = True
            both.wait()
        return found

    monkeypatch.setattr(Model, "versions", look)
    published, failed = at_once(publish, f"{url}/m", None)
    monkeypatch.undo()
    assert failed == []
    assert sorted(artifact.manifest.version for artifact in published) == ["1", "2"]
    model = open_model(f"{url}/m")
    assert model.versions() == ["1", "2"]
    for version in ("1", "2"):
        assert all(model.open(version).read(name) for name in FILES)
        assert len(open_store(f"{url}/m/{version}").list()) == 2
    assert model.stable().manifest.version in ("1", "2")


def test_of_two_exports_of_one_version_exactly_one_wins(
    url: str, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, commit = threading.Barrier(2), Publication.commit

    def together(publication: Publication, manifest: Any) -> Any:
        both.wait()
        return commit(publication, manifest)

    monkeypatch.setattr(Publication, "commit", together)
    published, failed = at_once(publish, f"{url}/m", "3")
    assert len(published) == 1
    assert [type(error) for error in failed] == [ExistsError]
    assert open_model(f"{url}/m").open("3").manifest == published[0].manifest
    assert len(open_store(f"{url}/m/3").list()) == 2


def test_an_export_whose_files_a_faster_one_swept_takes_the_next_version(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who commits first removes what others were writing, so that a write of theirs may fail."""
    write = LocalStore.write

    def swept(store: LocalStore, key: str, data: Any) -> None:
        monkeypatch.setattr(LocalStore, "write", write)
        publish(str(tmp_path / "m"), "1")
        raise NotFoundError(f"Cannot write {key}: nothing is there.")

    monkeypatch.setattr(LocalStore, "write", swept)
    assert publish(str(tmp_path / "m")).manifest.version == "2"


@pytest.mark.parametrize("name", [*sorted(FILES), MANIFEST])
def test_a_store_that_fails_at_any_file_shows_nothing_and_keeps_nothing(
    tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def failing(original: Any) -> Any:
        def write(store: LocalStore, key: str, data: Any) -> None:
            if key.endswith(name):
                raise StoreError(f"Cannot write {key}: No space left on device.")
            original(store, key, data)

        return write

    for method in ("write", "create"):
        monkeypatch.setattr(LocalStore, method, failing(getattr(LocalStore, method)))
    with pytest.raises(StoreError, match=f"{name}: No space left"):
        publish(str(tmp_path / "m"))
    monkeypatch.undo()
    assert open_model(str(tmp_path / "m")).versions() == []
    assert tree(str(tmp_path)) == set()
