"""The module is rebuilt from a checkpoint: its class comes from the caller, its bytes are checked before any parser."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from small_modules import Cells, Digits, Tiny, fit
from torch import nn

import shipline as sl
from shipline.checkpoint import WEIGHTS, Checkpoint, open_checkpoint
from shipline.commands import main
from shipline.errors import ConfigError, IntegrityError, NotFoundError, SchemaError, ShiplineError
from shipline.export.source import rebuild
from shipline.store import Publication, open_store
from shipline.store.commit import MANIFEST
from shipline.train import Run

EVIL = "import pathlib\npathlib.Path(__file__).with_name('canary').touch()\nclass Evil: pass\n"


def copied(checkpoint: Checkpoint, url: str, **changes: Any) -> Checkpoint:
    """The same checkpoint elsewhere, with other things said in its manifest, and a digest that is right."""
    with Publication(open_store(url)) as publication:
        for name in checkpoint.manifest.files:
            publication.add(name, changes.pop(name, None) or checkpoint.read(name))
        return Checkpoint(open_store(url), publication.commit(checkpoint.manifest.model_copy(update=changes)))


@pytest.fixture
def evil(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A checkpoint that names a module which, once imported, leaves a canary beside itself."""
    (tmp_path / "import").mkdir()
    (tmp_path / "import" / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(str(tmp_path / "import"))
    return copied(trained.checkpoint, str(tmp_path / "runs" / "version_0" / "checkpoints" / "one"), module="evil.Evil")


def test_the_class_that_a_checkpoint_names_is_never_imported(
    evil: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evil.manifest.module == "evil.Evil"
    to = str(tmp_path / "models" / "m")
    assert sl.export(evil, to=to, module=Tiny, data=Digits()).manifest.version == "1"
    with pytest.raises(ConfigError, match=r"It says 'evil\.Evil', but text in a checkpoint is not trusted"):
        sl.export(evil, to=to, data=Digits())
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["export", evil.url, "--to", to]) == 2
    assert "It says 'evil.Evil', but its run has no config.yaml" in capsys.readouterr().err
    with pytest.raises(IntegrityError, match=r"The weights of .* \(a evil\.Evil\) do not fit .*Cells"):
        sl.export(evil, to=to, module=lambda width: Cells(), data=Digits())
    assert "evil" not in sys.modules
    assert sorted(path.name for path in (tmp_path / "import").iterdir()) == ["evil.py"]


def test_a_remote_checkpoint_names_no_configuration(
    s3: str, trained: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to a bucket could write a config.yaml, too."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    checkpoint = copied(trained.checkpoint, f"{s3}/runs/version_0/checkpoints/one")
    open_store(f"{s3}/runs/version_0").write("config.yaml", b"module: {class_path: evil.Evil}\n")
    assert main(["export", checkpoint.url, "--to", f"{s3}/models/m"]) == 2
    assert "its run's configuration is not on this machine" in capsys.readouterr().err
    assert open_store(f"{s3}/models").list() == []


# ---- damage ----------------------------------------------------------------------------------------------------------


def weights_of(directory: Path) -> Path:
    return next(directory.glob(f"data-*/{WEIGHTS}"))


def flip_weights(directory: Path) -> None:
    data = bytearray(weights_of(directory).read_bytes())
    data[len(data) // 2] ^= 1
    weights_of(directory).write_bytes(data)


def cut_weights(directory: Path) -> None:
    weights_of(directory).write_bytes(weights_of(directory).read_bytes()[:-1])


def replace_weights_by_a_pickle(directory: Path) -> None:
    weights_of(directory).write_bytes(b"\x80\x05cos\nsystem\n(S'touch canary'\ntR.")


def newer(directory: Path) -> None:
    path = directory / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 9'))


def flip_manifest(directory: Path) -> None:
    path = directory / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"epoch": ', b'"epoch":1'))


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (flip_weights, IntegrityError, r"weights\.safetensors is damaged: its sha256 is"),
        (cut_weights, IntegrityError, r"weights\.safetensors has \d+ bytes; its manifest says"),
        (replace_weights_by_a_pickle, IntegrityError, r"has \d+ bytes; its manifest says"),
        (lambda directory: weights_of(directory).unlink(), IntegrityError, "is missing, though its manifest lists it"),
        (lambda directory: (directory / MANIFEST).unlink(), NotFoundError, "No checkpoint at .*; found beside it: one"),
        (newer, SchemaError, r"schema version 9; this Shipline reads up to 1\. Upgrade"),
        (flip_manifest, IntegrityError, "its bytes do not match its digest"),
        (lambda directory: (directory / MANIFEST).write_bytes(b"\x80\x05pickle"), IntegrityError, "is no manifest"),
    ],
)
def test_a_damaged_checkpoint_is_refused_before_anything_is_parsed(
    trained: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    error: type[ShiplineError],
    said: str,
) -> None:
    url = copied(trained.checkpoint, str(tmp_path / "runs" / "one")).url
    damage(Path(url))
    for parser in ("safetensors.torch.load", "torch.load"):
        monkeypatch.setattr(parser, lambda *_, **__: pytest.fail("damaged bytes reached a parser"))
    with pytest.raises(error, match=said):
        sl.export(url, to=str(tmp_path / "models" / "m"), module=Tiny, data=Digits())
    assert not (tmp_path / "models").exists()


def test_weights_that_are_whole_but_no_safetensors_are_refused(trained: Run, tmp_path: Path) -> None:
    checkpoint = copied(trained.checkpoint, str(tmp_path / "one"), **{WEIGHTS: b"\xff" * 100})
    with pytest.raises(IntegrityError, match=r"weights.safetensors holds no weights: .*train again"):
        rebuild(Tiny, checkpoint)


# ---- the caller's class ----------------------------------------------------------------------------------------------


def test_the_module_has_the_checkpoints_weights_and_is_in_evaluation_mode(trained: Run) -> None:
    module = rebuild(Tiny, trained.checkpoint)
    assert not any(part.training for part in module.modules())
    saved = safetensors.torch.load(trained.checkpoint.read(WEIGHTS))
    assert all(torch.equal(tensor, saved[name]) for name, tensor in module.state_dict().items())


class Chooses(Tiny):
    """Takes what a checkpoint cannot keep."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.net[1] = activation  # type: ignore[operator]


class Defaults(Tiny):
    """Takes what a checkpoint cannot keep, and could be constructed without."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.net[1] = activation or nn.ReLU()  # type: ignore[operator]


@pytest.mark.parametrize("cls", [Chooses, Defaults])
def test_constructor_arguments_that_were_not_kept_are_named(cls: type[Tiny], tmp_path: Path) -> None:
    """A default must not silently take their place. A run has them still."""
    run = fit(cls(nn.Tanh()), Digits(), tmp_path / "runs", epochs=1, limit_train_batches=1)  # type: ignore[arg-type]
    assert run.checkpoint.manifest.not_rebuildable == ["activation"]
    with pytest.raises(ConfigError) as caught:
        sl.export(run.checkpoint, to=str(tmp_path / "models" / "m"), module=cls, data=Digits())
    said = str(caught.value)
    assert f"{cls.__name__} was trained with activation, of which a checkpoint" in said
    assert f"functools.partial({cls.__name__}, activation=...)" in said
    assert not (tmp_path / "models").exists()
    again = functools.partial(cls, activation=nn.Tanh())
    sl.export(run.checkpoint, to=str(tmp_path / "models" / "m"), module=again, data=Digits())
    sl.export(run, to=str(tmp_path / "models" / "m"))


@pytest.mark.parametrize(
    ("module", "error", "said"),
    [
        (lambda wide: Tiny(wide), ConfigError, r"arguments in .* \({'width': 64}\): .*unexpected keyword argument"),
        (lambda width: Tiny(width + 1), IntegrityError, "size mismatch for net.0.weight"),
        (lambda width: Cells(), IntegrityError, "Give the class that was trained"),
        (lambda width: nn.Linear(64, 10), IntegrityError, "Missing key"),
    ],
)
def test_a_class_that_is_not_the_checkpoints(
    trained: Run, module: Callable[..., nn.Module], error: type[ShiplineError], said: str
) -> None:
    with pytest.raises(error, match=said):
        rebuild(module, trained.checkpoint)


def test_tied_weights_are_tied_again(tmp_path: Path) -> None:
    class Tied(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.same = self.net[3]  # type: ignore[assignment]

    run = fit(Tied(), Digits(), tmp_path, epochs=1, limit_train_batches=1)
    checkpoint = open_checkpoint(run.checkpoint.url)
    assert checkpoint.manifest.tied_weights == {"same.weight": "net.3.weight", "same.bias": "net.3.bias"}
    module = rebuild(Tied, checkpoint)
    assert torch.equal(module.state_dict()["same.weight"], module.state_dict()["net.3.weight"])
