"""Archives of torch: nothing in them is unpickled, and what was compiled for another processor is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_files
from torch._C import PyTorchFileReader

from shipline.artifact import ServingSettings
from shipline.backends.aotinductor import AotInductorBackend
from shipline.backends.exported import ExportedBackend
from shipline.backends.torchscript import TorchScriptBackend
from shipline.errors import IntegrityError, ServingError

WEIGHTS = "data/weights/model_weights_config.json"


class Payload:
    """Makes a directory where it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def pickled_weights(archive: bytes) -> bytes:
    """The description of the weights, but as pickles."""
    config = json.loads(PyTorchFileReader(io.BytesIO(archive)).get_record(WEIGHTS))
    for entry in config["config"].values():
        entry["use_pickle"] = True
    return json.dumps(config).encode()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("data/sample_inputs/model.pt", "it holds example inputs"),
        ("data/weights/model.pt", "it holds 'data/weights/model.pt'"),
        ("data/constants/opaque_obj_0", "it holds 'data/constants/opaque_obj_0'"),
        ("data/aotinductor/model/x.so", "it holds 'data/aotinductor/model/x.so'"),
        ("models/other.json", "it holds 'models/other.json'"),
    ],
)
def test_an_archive_with_a_place_for_pickles_is_refused(tmp_path: Path, name: str, says: str) -> None:
    content = pickle.dumps(Payload(tmp_path / "ran"))
    archive = torch_files.rewritten(torch_files.mixed("torch-export"), **{name: content})
    with pytest.raises(IntegrityError, match=says):
        ExportedBackend.load(archive, ServingSettings())
    assert not (tmp_path / "ran").exists()


def test_weights_that_are_pickled_are_refused(tmp_path: Path) -> None:
    good = torch_files.mixed("torch-export")
    content = pickle.dumps(Payload(tmp_path / "ran"))
    archive = torch_files.rewritten(good, **{WEIGHTS: pickled_weights(good), "data/weights/weight_0": content})
    with pytest.raises(IntegrityError, match="it holds tensors that are pickled"):
        ExportedBackend.load(archive, ServingSettings())
    assert not (tmp_path / "ran").exists()


def test_torch_itself_would_unpickle_it(tmp_path: Path) -> None:
    """Else the tests above prove nothing."""
    good = torch_files.mixed("torch-export")
    content = pickle.dumps(Payload(tmp_path / "ran"))
    archive = torch_files.rewritten(good, **{WEIGHTS: pickled_weights(good), "data/weights/weight_0": content})
    with pytest.raises(Exception, match=r"."):
        torch.export.load(io.BytesIO(archive))
    assert (tmp_path / "ran").exists()


def test_a_pickle_in_torchscript_runs_nothing(tmp_path: Path) -> None:
    content = pickle.dumps(Payload(tmp_path / "ran"), protocol=2)
    archive = torch_files.rewritten(torch_files.mixed("torchscript"), **{"data.pkl": content})
    with pytest.raises(RuntimeError):
        TorchScriptBackend.load(archive, ServingSettings())
    assert not (tmp_path / "ran").exists()


def test_torchscript_without_a_signature_is_refused() -> None:
    archive = torch_files.rewritten(torch_files.mixed("torchscript"), **{"extra/signature.json": None})
    with pytest.raises(IntegrityError, match=r"it holds no signature\.json"):
        TorchScriptBackend.load(archive, ServingSettings())


def test_a_library_with_other_files_is_refused() -> None:
    archive = torch_files.rewritten(torch_files.mixed("aotinductor"), **{"data/weights/weight_0": b"pickle"})
    with pytest.raises(IntegrityError, match="it holds 'data/weights/weight_0'"):
        AotInductorBackend.load(archive, ServingSettings())


@pytest.mark.parametrize("backend", [TorchScriptBackend, ExportedBackend, AotInductorBackend])
def test_half_an_archive_is_refused(backend: type[Any]) -> None:
    model = torch_files.mixed(backend.format)
    with pytest.raises(Exception, match=r"."):
        backend.load(model[: len(model) // 2], ServingSettings())


def test_a_library_for_another_processor_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch_files.mixed("aotinductor")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": False, "fma3": False})
    with pytest.raises(ServingError, match=r"compiled for linux on \S+ with .*; this machine has no \w+"):
        AotInductorBackend.load(model, ServingSettings())
    monkeypatch.undo()
    monkeypatch.setattr("platform.machine", lambda: "sparc")
    with pytest.raises(ServingError, match=r"this machine has no \w+"):
        AotInductorBackend.load(model, ServingSettings())


def test_a_library_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch_files.mixed("aotinductor")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    AotInductorBackend.load(model, ServingSettings()).close()
    assert list(tmp_path.iterdir()) == []
