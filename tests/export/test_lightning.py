"""Checkpoints of PyTorch Lightning: read without running what is in them, exported as what they were."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_line import LitData, LitDigits, OneArgument, Silent, fit_in_lightning
from torch import nn

import shipline as sl
from shipline.artifact import open_model
from shipline.commands import main
from shipline.errors import ConfigError, GateError, IntegrityError, NotFoundError, ShiplineError
from shipline.export.lightning import LightningCheckpoint

X = torch.linspace(0, 1, 5 * 64).reshape(5, 64)


class Trained:
    """A module that Lightning trained, its best checkpoint and its score."""

    def __init__(self, module: Any, root: Path, **settings: Any) -> None:
        best = fit_in_lightning(module, root, **settings)
        self.path, self.score = best.best_model_path, float(best.best_model_score)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(LitDigits(width=24), tmp_path_factory.mktemp("lightning"))


def changed(path: str, to: Path, **changes: Any) -> str:
    """The same file with other things in it."""
    content = torch.load(path, weights_only=True) | changes
    torch.save(content, to)
    return str(to)


def test_a_checkpoint_of_lightnings_is_exported_as_it_was(trained: Trained, tmp_path: Path) -> None:
    manifest = sl.export(trained.path, module=LitDigits, data=LitData(), to=str(tmp_path / "m")).manifest
    assert manifest.metrics == {"val_acc": pytest.approx(trained.score, abs=1e-6)}
    rebuilt = next(verdict for verdict in manifest.verdicts if verdict.gate == "rebuilt")
    assert rebuilt.measured == pytest.approx(0, abs=1e-6)
    lineage = manifest.lineage
    assert lineage.checkpoint_digest == hashlib.sha256(Path(trained.path).read_bytes()).hexdigest()
    assert lineage.checkpoint is not None
    assert trained.path.endswith(f"/{lineage.checkpoint}")
    assert lineage.config["hyper_parameters"] == {"width": 24, "activation": None}
    assert lineage.config["global_step"] > 0


def test_rows_will_do_in_place_of_data(trained: Trained, tmp_path: Path) -> None:
    manifest = sl.export(trained.path, module=LitDigits, rows=X, to=str(tmp_path / "m")).manifest
    assert manifest.metrics.keys() == {"fidelity"}


def test_the_score_of_another_file_is_not_taken_for_its_own(trained: Trained, tmp_path: Path) -> None:
    copied = changed(trained.path, tmp_path / "other.ckpt")
    source = LightningCheckpoint.open(copied).source(LitDigits)
    assert (source.monitor, source.mode, source.recorded) == ("val_acc", "max", {})
    assert LightningCheckpoint.open(trained.path).source(LitDigits).recorded == {
        "val_acc": pytest.approx(trained.score)
    }


class Canary:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


class Evaluates(Canary):
    def __reduce__(self) -> Any:
        return eval, (f"__import__('os').mkdir({self.path!r})",)


@pytest.mark.parametrize("kind", [Canary, Evaluates])
@pytest.mark.parametrize("place", ["hyper_parameters", "state_dict", "callbacks", "extra"])
def test_nothing_in_the_file_is_run(trained: Trained, tmp_path: Path, kind: type[Canary], place: str) -> None:
    planted = str(tmp_path / "planted")
    content = torch.load(trained.path, weights_only=True)
    evil = kind(planted)
    path = changed(trained.path, tmp_path / "evil.ckpt", **{place: {**content.get(place, {}), "evil": evil}})
    with pytest.raises(ShiplineError, match=r"without running code that is in it|do not fit LitDigits|give data"):
        sl.export(path, module=LitDigits, to=str(tmp_path / "m"))
    assert not Path(planted).exists()
    torch.load(path, weights_only=False)  # the plant works
    assert Path(planted).exists()


@pytest.mark.filterwarnings("ignore:Attribute 'activation' is an instance")
def test_arguments_that_are_objects_are_given_again(tmp_path: Path) -> None:
    found = Trained(LitDigits(activation=nn.Tanh()), tmp_path / "runs", epochs=1)
    to = str(tmp_path / "m")
    with pytest.raises(
        ConfigError, match=r"LitDigits was trained with activation.*partial\(LitDigits, activation=\.\.\."
    ):
        sl.export(found.path, module=LitDigits, data=LitData(), to=to)
    again = functools.partial(LitDigits, activation=nn.Tanh())
    artifact = sl.export(found.path, module=again, data=LitData(), to=to)
    assert artifact.manifest.metrics["val_acc"] == pytest.approx(found.score, abs=1e-6)
    assert artifact.manifest.lineage.config["hyper_parameters"] == {"width": 8}


def test_a_dict_as_the_only_argument_and_the_modules_own_hooks(tmp_path: Path) -> None:
    found = Trained(OneArgument({"width": 12}), tmp_path / "runs", epochs=1)
    path = changed(found.path, tmp_path / "named.ckpt", hparams_name="config")
    module = LightningCheckpoint.open(path).build(OneArgument)
    theirs = OneArgument.load_from_checkpoint(path, weights_only=True).eval()
    assert module.shift == 0.5
    assert not module.training
    with torch.no_grad():
        torch.testing.assert_close(module(X), theirs(X), rtol=0, atol=0)


def test_what_the_command_line_of_lightning_notes_down_is_left_out(trained: Trained, tmp_path: Path) -> None:
    noted = {"width": 24, "_instantiator": "evil.module", "_class_path": "evil.Class", "unknown": 1}
    path = changed(trained.path, tmp_path / "cli.ckpt", hyper_parameters=noted)
    assert LightningCheckpoint.open(path).build(LitDigits).net[0].out_features == 24
    assert "evil" not in sys.modules


def without_weights(path: str) -> None:
    changed(path, Path(path), state_dict=None)


def not_finite(path: str) -> None:
    weights = torch.load(path, weights_only=True)["state_dict"]
    changed(path, Path(path), state_dict={**weights, "net.0.bias": weights["net.0.bias"] * torch.inf})


@pytest.mark.parametrize(
    ("damage", "module", "error", "said"),
    [
        (os.unlink, LitDigits, NotFoundError, "Cannot read .*No such file"),
        (lambda path: os.truncate(path, 1000), LitDigits, IntegrityError, "cannot be read without running code"),
        (lambda path: Path(path).write_bytes(b"\x80\x05cos\nsystem\n."), LitDigits, IntegrityError, "cannot be read"),
        (without_weights, LitDigits, IntegrityError, "has no state_dict: it is no checkpoint of Lightning's"),
        (not_finite, LitDigits, GateError, r"NaN or infinite values in 'net.0.bias' \(24 in all\)"),
        (lambda path: None, Silent, IntegrityError, "The weights of .* do not fit Silent: Error"),
        (
            lambda path: None,
            lambda wide: nn.Linear(1, 1),
            ConfigError,
            "missing 1 required positional argument: 'wide'",
        ),
        (lambda path: None, None, ConfigError, "Code is never chosen by a file: give module=YourLightningModule"),
    ],
)
def test_files_and_classes_that_are_refused(
    trained: Trained, tmp_path: Path, damage: Callable[[str], Any], module: Any, error: type[ShiplineError], said: str
) -> None:
    path = tmp_path / "epoch=1.ckpt"
    path.write_bytes(Path(trained.path).read_bytes())
    damage(str(path))
    with pytest.raises(error, match=said):
        sl.export(str(path), module=module, data=LitData(), to=str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


CONFIG = """
module: {class_path: lightning_line.CLASS, init_args: {width: 24}}
data: {class_path: lightning_line.LitData}
"""


def test_from_the_command_line(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "train.yaml").write_text(CONFIG.replace("CLASS", "LitDigits"))
    command = ["export", trained.path, "--to", str(tmp_path / "m")]
    assert main(command) == 2
    assert "Give the training's file: --run_config train.yaml" in capsys.readouterr().err
    assert main([*command, "--run_config", str(tmp_path / "train.yaml")]) == 0
    assert open_model(str(tmp_path / "m")).stable().manifest.metrics["val_acc"] == pytest.approx(trained.score)


def test_the_command_line_constructs_what_keeps_no_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    found = Trained(Silent(width=24), tmp_path / "runs", epochs=1)
    (tmp_path / "train.yaml").write_text(CONFIG.replace("CLASS", "Silent"))
    config = ["--run_config", str(tmp_path / "train.yaml")]
    assert main(["export", found.path, "--to", str(tmp_path / "m"), *config]) == 0
    assert open_model(str(tmp_path / "m")).stable().manifest.metrics["val_acc"] == pytest.approx(found.score)


def test_a_checkpoint_on_s3(s3: str, trained: Trained) -> None:
    from shipline.store import open_store

    open_store(f"{s3}/runs").write("epoch=2.ckpt", Path(trained.path).read_bytes())
    found = sl.export(f"{s3}/runs/epoch=2.ckpt", module=LitDigits, rows=X, to=f"{s3}/models/m")
    assert found.manifest.lineage.checkpoint == f"{s3}/runs/epoch=2.ckpt"
    assert io.BytesIO(found.read("model.onnx")).getbuffer().nbytes > 0
