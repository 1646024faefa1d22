"""Modules become TorchScript, programs of torch.export and libraries, which compute what the module does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_files
from small_modules import Tiny
from torch import nn
from torch._inductor import config

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.backends.base import Arrays, Backend
from shipline.errors import GateError

X = np.random.default_rng(0).standard_normal((6, 64), np.float32)
INTERPRETED = ("torchscript", "torch-export")


class Branch(nn.Module):
    """Goes one way for rows whose sum is positive, and another for others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Listed(nn.Module):
    """Decides by a value, in Python that TorchScript does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest = sorted([float(value) for value in x[0]], key=lambda value: -value)[0]
        return x + largest


class InPlace(nn.Module):
    """Writes into its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2).relu_()


def load(form: str, model: bytes) -> Backend:
    backend_class: type[Backend] = plugins.load("backend", form)
    return backend_class.load(model, ServingSettings())


def answers(form: str, module: nn.Module, inputs: Arrays, compute: str = "float32") -> np.ndarray:
    (output,) = load(form, torch_files.converted(form, module, inputs, compute)).run(inputs).values()
    return output


@pytest.mark.parametrize("form", INTERPRETED)
def test_a_module_keeps_its_answers_and_stays_as_it_is(form: str, capfd: pytest.CaptureFixture[str]) -> None:
    module = Tiny().eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for compute, limit in (("float32", 1e-6), ("bfloat16", 1e-2)):
        found = answers(form, module, {"x": X}, compute)
        assert found.dtype == np.float32
        assert np.abs(found - module(torch.from_numpy(X)).numpy(force=True)).max() <= limit
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert capfd.readouterr() == ("", "")


def test_layers_that_look_at_sizes_are_traced() -> None:
    """As torch's own group norm does, which no script could follow into a module that belongs to a Trainer."""

    class Normed(Tiny):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(nn.functional.group_norm(x, 4))

    module = Normed().eval()
    found = answers("torchscript", module, {"x": X})
    assert np.abs(found - module(torch.from_numpy(X)).numpy(force=True)).max() <= 1e-6


@pytest.mark.parametrize("form", INTERPRETED)
def test_bfloat16_halves_the_weights(form: str) -> None:
    sizes = [len(torch_files.converted(form, Tiny(512), {"x": X}, compute)) for compute in ("float32", "bfloat16")]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("form", INTERPRETED)
def test_inputs_stay_as_they_are(form: str) -> None:
    inputs = {"x": X.copy()}
    found = load(form, torch_files.converted(form, InPlace(), {"x": X.copy()})).run(inputs)["output"]
    np.testing.assert_array_equal(inputs["x"], X)
    np.testing.assert_array_equal(found, np.maximum(X * 2, 0))


@pytest.mark.parametrize("form", INTERPRETED)
def test_no_path_of_this_machine_is_in_the_file(form: str) -> None:
    check_tells_no_path(torch_files.mixed(form))


def check_tells_no_path(model: bytes) -> None:
    for path in (Path(__file__).parents[2], sys.prefix, Path(torch.__file__).parents[1]):
        assert str(path).encode() not in model
    assert not re.search(rb"/tmp/\w|\w\.py\b.{0,9}line", model)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_branch_is_scripted_and_goes_both_ways(sign: int) -> None:
    """A trace would have kept the way of the row that it was made with."""
    model = torch_files.converted("torchscript", Branch(), {"x": np.abs(X)})
    x = np.abs(X) * sign
    np.testing.assert_array_equal(load("torchscript", model).run({"x": x})["output"], x + sign)


def test_what_can_be_neither_traced_nor_scripted_names_its_line() -> None:
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "largest = sorted(" in text)
    said = rf"Listed decides by values at {re.escape(Path(__file__).name)}:{line}, which a trace cannot follow"
    with pytest.raises(GateError, match=said):
        torch_files.converted("torchscript", Listed(), {"x": X})


@pytest.mark.parametrize("form", ["torch-export", "aotinductor"])
def test_what_torch_cannot_export_is_refused(form: str) -> None:
    with pytest.raises(GateError, match=r"Listed cannot be exported with torch.export, so nothing was published: \w+"):
        torch_files.converted(form, Listed(), {"x": X})


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler = config.cpp.cxx[1]
    with pytest.raises(GateError, match=rf"needs a compiler of C\+\+, and there is no '{re.escape(compiler)}' here"):
        torch_files.converted("aotinductor", Tiny(), {"x": X})


def test_compiling_leaves_no_files_and_says_nothing_and_the_file_no_path_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    module = Tiny().eval()
    model = torch_files.converted("aotinductor", module, {"x": X})
    check_tells_no_path(model)
    (found,) = load("aotinductor", model).run({"x": X}).values()
    np.testing.assert_allclose(found, module(torch.from_numpy(X)).numpy(force=True), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == []
    assert capfd.readouterr() == ("", "")
