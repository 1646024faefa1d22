"""Checkpoints: found by directory or by name, and messages that list what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from shipline.checkpoint import POINTERS, WEIGHTS, Checkpoint, CheckpointManifest, open_checkpoint
from shipline.errors import ConfigError, IntegrityError, NotFoundError, SchemaError
from shipline.lineage import Lineage
from shipline.store import Publication, open_store, write_pointers
from shipline.store.commit import MANIFEST, discard


def commit(url: str, epoch: int = 0) -> CheckpointManifest:
    """Commit a checkpoint whose weights tell its epoch."""
    with Publication(open_store(url)) as publication:
        publication.add(WEIGHTS, f"weights of {epoch}".encode())
        publication.add("state/state.json", b"{}")
        return publication.commit(CheckpointManifest(module="digits.Digits", epoch=epoch, global_step=epoch * 10))


@pytest.fixture
def run(url: str) -> str:
    """The URL of a run with checkpoints of epochs 1 and 2; the first is the best one."""
    for epoch in (1, 2):
        commit(f"{url}/run/checkpoints/epoch={epoch}-step={epoch}0", epoch)
    names = {"best": "checkpoints/epoch=1-step=10", "last": "checkpoints/epoch=2-step=20"}
    write_pointers(open_store(f"{url}/run"), POINTERS, {name: {"checkpoint": key} for name, key in names.items()})
    return f"{url}/run"


@pytest.mark.parametrize(
    ("name", "epoch"),
    [("best", 1), ("last", 2), ("last/", 2), ("checkpoints/epoch=1-step=10", 1), ("checkpoints/epoch=2-step=20/", 2)],
)
def test_a_checkpoint_is_found_by_name_and_by_directory(run: str, name: str, epoch: int) -> None:
    found = open_checkpoint(f"{run}/{name}")
    assert isinstance(found, Checkpoint)
    assert (found.manifest.epoch, found.manifest.global_step) == (epoch, epoch * 10)
    assert found.read(WEIGHTS) == f"weights of {epoch}".encode()
    assert found.url == f"{run}/checkpoints/epoch={epoch}-step={epoch}0"


def test_a_name_of_the_experiment_may_point_into_a_run(run: str) -> None:
    experiment = run.removesuffix("/run")
    write_pointers(
        open_store(experiment), POINTERS, {"best": {"checkpoint": "run/checkpoints/epoch=1-step=10", "score": 0.5}}
    )
    assert open_checkpoint(f"{experiment}/best").manifest.epoch == 1


def test_a_name_moves_to_another_checkpoint_and_the_others_stay(run: str) -> None:
    write_pointers(open_store(run), POINTERS, {"best": {"checkpoint": "checkpoints/epoch=2-step=20"}})
    assert open_checkpoint(f"{run}/best").manifest.epoch == 2
    assert open_checkpoint(f"{run}/last").manifest.epoch == 2


def test_a_directory_comes_before_a_name(run: str) -> None:
    commit(f"{run}/best", 7)
    assert open_checkpoint(f"{run}/best").manifest.epoch == 7


def test_an_unknown_name_lists_those_that_are_known(run: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        open_checkpoint(f"{run}/bets")
    assert str(caught.value) == (
        f"No checkpoint at {run}/bets; names known there: best, last. "
        "Give a checkpoint's directory, or <run>/best or <run>/last."
    )


def test_a_run_itself_is_no_checkpoint(run: str) -> None:
    with pytest.raises(NotFoundError, match=r"No checkpoint at .*/run; found beside it: run\. Give a checkpoint's"):
        open_checkpoint(run)


def test_an_empty_place_says_that_nothing_is_there(url: str) -> None:
    with pytest.raises(NotFoundError, match=r"found beside it: nothing\."):
        open_checkpoint(f"{url}/runs/best")


def test_a_checkpoint_without_its_manifest_does_not_exist(run: str) -> None:
    """Neither a publication that did not finish nor one that is being deleted."""
    open_store(run).remove(f"checkpoints/epoch=1-step=10/{MANIFEST}")
    for name in ("best", "checkpoints/epoch=1-step=10"):
        with pytest.raises(NotFoundError):
            open_checkpoint(f"{run}/{name}")


def test_a_name_whose_checkpoint_was_deleted_says_which(run: str) -> None:
    discard(open_store(f"{run}/checkpoints"), "epoch=1-step=10")
    with pytest.raises(NotFoundError, match=r"checkpoints/epoch=1-step=10 has no manifest\.json"):
        open_checkpoint(f"{run}/best")
    assert open_checkpoint(f"{run}/last").manifest.epoch == 2


@pytest.mark.parametrize("target", ["../../etc", "/etc", "checkpoints/../../x", "s3://elsewhere/x", ""])
def test_a_name_never_leads_out_of_its_run(tmp_path: Path, target: str) -> None:
    commit(str(tmp_path / "run" / "checkpoints" / "a"))
    write_pointers(open_store(str(tmp_path / "run")), POINTERS, {"best": {"checkpoint": target}})
    with pytest.raises(ConfigError, match="is no key"):
        open_checkpoint(str(tmp_path / "run" / "best"))


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"best": "x"}', b"\xff", b"[" * 10_000, b'{"a": {}}' + b" " * (1 << 20)]
)
def test_a_damaged_file_of_names_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / POINTERS).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"checkpoints\.json is damaged: a JSON object of names is expected"):
        open_checkpoint(str(tmp_path / "best"))


def test_a_name_without_a_target_is_no_checkpoint(run: str) -> None:
    write_pointers(open_store(run), POINTERS, {"best": {"chekpoint": "x"}})
    with pytest.raises(NotFoundError, match="names known there: best, last"):
        open_checkpoint(f"{run}/best")


@pytest.mark.parametrize("place", [0, -2], ids=["first byte", "last byte"])
def test_a_flipped_byte_of_the_manifest_is_refused(tmp_path: Path, place: int) -> None:
    commit(str(tmp_path / "a"))
    path = tmp_path / "a" / MANIFEST
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged"):
        open_checkpoint(str(tmp_path / "a"))


def test_another_kind_of_manifest_is_refused(tmp_path: Path) -> None:
    class OtherManifest(CheckpointManifest):
        weather: str = "fine"

    with Publication(open_store(str(tmp_path / "a"))) as publication:
        publication.commit(OtherManifest(module="m.M", epoch=0, global_step=0))
    with pytest.raises(IntegrityError, match="is no CheckpointManifest: weather: Extra inputs are not permitted"):
        open_checkpoint(str(tmp_path / "a"))


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    commit(str(tmp_path / "a"))
    path = tmp_path / "a" / MANIFEST
    content = json.loads(path.read_bytes())
    path.write_text(json.dumps(content | {"schema_version": 2, "shards": []}))
    with pytest.raises(SchemaError, match=r"schema version 2; this Shipline reads up to 1\. Upgrade"):
        open_checkpoint(str(tmp_path / "a"))


def test_a_manifest_keeps_what_it_was_given(tmp_path: Path) -> None:
    manifest = CheckpointManifest(
        module="digits.Digits",
        hyper_parameters={"channels": 32, "sizes": [1, 2], "name": None},
        not_rebuildable=["loss"],
        tied_weights={"decoder.weight": "encoder.weight"},
        epoch=3,
        global_step=120,
        metrics={"val_acc": 0.98, "val_loss": None},
        monitor="val_acc",
        mode="max",
        lineage=Lineage(git_commit="c0ffee", git_dirty=True, seed=7, world_size=2),
    )
    with Publication(open_store(str(tmp_path))) as publication:
        sealed = publication.commit(manifest)
    found = open_checkpoint(str(tmp_path)).manifest
    assert found == sealed
    assert found.model_dump(exclude={"digest"}) == manifest.model_dump(exclude={"digest"})


def test_a_manifest_is_frozen_and_refuses_what_it_does_not_know() -> None:
    manifest = CheckpointManifest(module="m.M", epoch=0, global_step=0)
    with pytest.raises(ValidationError, match="frozen"):
        manifest.epoch = 1
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        CheckpointManifest(module="m.M", epoch=0, global_step=0, class_path="os.system")  # type: ignore[call-arg]


def test_opening_a_checkpoint_imports_nothing_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class is text for people: reading a checkpoint never runs code."""
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Publication(open_store(str(tmp_path / "a"))) as publication:
        publication.add(WEIGHTS, b"")
        publication.commit(CheckpointManifest(module="evil_module.Evil", epoch=0, global_step=0))
    assert open_checkpoint(str(tmp_path / "a")).manifest.module == "evil_module.Evil"
    assert not (tmp_path / "canary").exists()
