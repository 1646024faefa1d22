"""Checkpoints that are damaged, forged, too new or not there: nothing but what was written comes back from one.

A run goes on from the one before.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Thing, train
from training import Mlp, Scripted, new_trainer, numbers, same_weights, train_loader

import shipline as sl
from shipline.checkpoint import STATE, STATE_TENSORS, WEIGHTS
from shipline.errors import IntegrityError, NotFoundError, SchemaError, TrainingError
from shipline.store import open_store
from shipline.train import Callback


def attempts(url: str) -> list[Any]:
    """Everything that reads a checkpoint: for its weights, and to go on training."""
    trainer = new_trainer(Path(url).parent / "resumed", max_epochs=2)
    return [
        lambda: Mlp.load_from_checkpoint(url),
        lambda: trainer.fit(Mlp(hidden=8), train_loader(64), ckpt_path=url),
    ]


def damaged(tmp_path: Path, name: str) -> tuple[str, Path]:
    """A checkpoint, and the path of one of its files."""
    checkpoint = train(tmp_path).checkpoint
    return checkpoint.url, Path(checkpoint.url) / checkpoint.manifest.files[name].key


@pytest.mark.parametrize("name", [WEIGHTS, STATE, STATE_TENSORS])
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_byte_is_refused(tmp_path: Path, name: str, where: float) -> None:
    url, path = damaged(tmp_path, name)
    data = bytearray(path.read_bytes())
    data[int(where * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    for attempt in attempts(url)[0 if name == WEIGHTS else 1 :]:
        with pytest.raises(IntegrityError, match=r"is damaged: its sha256 is .* Do not use it"):
            attempt()


@pytest.mark.parametrize("name", [WEIGHTS, STATE, STATE_TENSORS])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    url, path = damaged(tmp_path, name)
    path.unlink()
    for attempt in attempts(url)[0 if name == WEIGHTS else 1 :]:
        with pytest.raises(IntegrityError, match=f"{path.name} is missing, though its manifest lists it"):
            attempt()


def test_a_pickle_in_place_of_weights_is_refused_and_never_run(tmp_path: Path) -> None:
    """Even with a manifest that vouches for it: no reader of checkpoints can run code."""
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    from shipline.checkpoint import CheckpointManifest
    from shipline.store import Publication

    url = str(tmp_path / "evil")
    with Publication(open_store(url)) as publication:
        for name in (WEIGHTS, STATE, STATE_TENSORS):
            publication.add(name, pickle.dumps(Evil()))
        publication.commit(CheckpointManifest(module="training.Mlp", epoch=0, global_step=1))
    for attempt in attempts(url):
        with pytest.raises(IntegrityError):
            attempt()
    assert not canary.exists()


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    url = train(tmp_path).checkpoint.url
    path = Path(url) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 2'))
    for attempt in attempts(url):
        with pytest.raises(SchemaError, match=r"schema version 2; this Shipline reads up to 1\. Upgrade"):
            attempt()


def test_a_checkpoint_without_its_manifest_does_not_exist(tmp_path: Path) -> None:
    url = train(tmp_path).checkpoint.url
    (Path(url) / "manifest.json").unlink()
    for attempt in attempts(url):
        with pytest.raises(NotFoundError, match=r"No checkpoint at .*Give a checkpoint's directory, or <run>/best"):
            attempt()


def test_names_that_are_known_are_listed(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(NotFoundError, match=r"No checkpoint at .*/bset; names known there: best, last"):
        Mlp.load_from_checkpoint(str(tmp_path / "mlp" / "bset"))
    with pytest.raises(NotFoundError, match=r"found beside it: nothing"):
        Mlp.load_from_checkpoint(str(tmp_path / "nobody" / "best"))


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    class Careless(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"object": Thing()}

    with pytest.raises(TrainingError, match=r"state\.callbacks\.\S*Careless\.object is a Thing"):
        new_trainer(tmp_path, max_epochs=1, callbacks=Careless()).fit(Scripted(), numbers(1))
    assert open_store(str(tmp_path / "scripted" / "version_0" / "checkpoints")).list() == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "manifest", "pointer"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """It says so, deletes nothing, and the run still ends as it should."""

    def fit(name: str, epochs: int, ckpt_path: str | None = None) -> Any:
        torch.manual_seed(0)
        module = Mlp()
        keep = sl.ModelCheckpoint(save_top_k=-1)
        run = new_trainer(tmp_path, name=name, max_epochs=epochs, callbacks=keep).fit(
            module, train_loader(64), ckpt_path=ckpt_path
        )
        return module, run

    _, run = fit("parts", 3)
    [weights] = Path(run.last_url).rglob("weights.safetensors")
    data = bytearray(weights.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(data[:-7])
    elif damage == "gone":
        weights.unlink()
    elif damage == "manifest":
        (Path(run.last_url) / "manifest.json").write_text("{")
    else:
        (tmp_path / "parts" / "checkpoints.json").write_text("[]")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with caplog.at_level("WARNING", logger="shipline"):
        module, _ = fit("parts", 4, "last")
    assert "Going on from the one before: " in caplog.text
    newest = "epoch=2-step=6" if damage == "pointer" else "epoch=1-step=4"
    assert f"{newest}. Nothing was deleted." in caplog.text
    assert same_weights(module, fit("whole", 4)[0])
    assert {path for path in before if not path.exists()} == set()


def test_where_every_checkpoint_is_damaged_the_first_reason_is_given(tmp_path: Path) -> None:
    run = new_trainer(tmp_path, max_epochs=1).fit(Mlp(), train_loader(32))
    for weights in Path(str(run.url)).rglob("weights.safetensors"):
        weights.write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"weights\.safetensors has 0 bytes"):
        new_trainer(tmp_path, max_epochs=2).fit(Mlp(), train_loader(32), ckpt_path="last")
