"""The backends, and the double that stands in for one: they do the same."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import artifacts
import numpy as np
import onnxruntime
import pytest
import torch
import torch_files
from backend_conformance import BackendConformance, Case, check_equal
from doubles import POISON, IdentityBackend
from helpers import ROOT

from shipline import plugins
from shipline.artifact import ServingSettings
from shipline.backends.aotinductor import AotInductorBackend
from shipline.backends.base import Backend
from shipline.backends.exported import ExportedBackend
from shipline.backends.onnx import OnnxBackend
from shipline.backends.onnx_gpu import BoundOnnxBackend, CudaBackend, TensorRtBackend, batch_profile
from shipline.backends.openvino import OpenVinoBackend, some_rows
from shipline.backends.torchscript import TorchScriptBackend
from shipline.errors import ConfigError, InputError, SignatureError, UnknownNameError


class TestIdentity(BackendConformance):
    """The double: what holds for it and not for a backend would make the tests that use it lie."""

    backend_class = IdentityBackend

    @pytest.fixture
    def case(self) -> Case:
        return Case(
            b"x=y,u=v",
            lambda rows: {"x": np.arange(rows * 2.0).reshape(rows, 2), "u": np.arange(rows)},
            lambda inputs: {"y": inputs["x"], "v": inputs["u"]},
            {"x": np.array([[POISON]])},
        )


class TestOnnx(BackendConformance):
    """onnxruntime: floats, whole numbers and truths, several tensors, and a graph that raises for some rows."""

    backend_class = OnnxBackend

    @pytest.fixture(params=["linear", "masked", "lookup"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        graph: artifacts.Graph = getattr(artifacts, request.param)()
        return Case(graph.model, INPUTS[request.param], graph.function, POISON_INPUTS[request.param])


class BoundToMemory(BoundOnnxBackend):
    """Tensors bound to a device's memory, where the device is the CPU: as on a GPU, but for what computes."""

    provider = "CPUExecutionProvider"
    memory = "cpu"


class TestBoundOnnx(TestOnnx):
    backend_class = BoundToMemory


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs a GPU")
class TestCuda(TestOnnx):
    backend_class = CudaBackend


@pytest.mark.filterwarnings("ignore:Specified provider")
@pytest.mark.parametrize("backend_class", [CudaBackend, TensorRtBackend])
@pytest.mark.parametrize("provider", ["NoExecutionProvider", "OpenVINOExecutionProvider"])
def test_a_device_that_is_not_here_is_not_made_up_for_by_another(
    backend_class: type[BoundOnnxBackend], provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime would go on without a word on the CPU, where it was asked for a device that it cannot start."""
    monkeypatch.setattr(backend_class, "provider", provider)
    if provider.startswith("OpenVINO"):  # as an onnxruntime-gpu without a GPU has it
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [provider, "CPUExecutionProvider"])
    says = "is there a GPU" if provider.startswith("OpenVINO") else "Install onnxruntime-gpu in its place"
    with pytest.raises(ConfigError, match=says):
        backend_class.load(artifacts.linear().model, ServingSettings())


def test_an_engine_is_built_for_every_batch_up_to_the_largest() -> None:
    settings = ServingSettings(max_batch_size=32, preferred_batch_size=8)
    assert batch_profile(artifacts.masked().model, settings) == {
        "trt_profile_min_shapes": "ids:1x3,keep:1x3",
        "trt_profile_opt_shapes": "ids:8x3,keep:8x3",
        "trt_profile_max_shapes": "ids:32x3,keep:32x3",
    }


class TestOpenVino(BackendConformance):
    """The same graphs; an index beyond the table is no error here, a number beyond 32 bits is."""

    backend_class = OpenVinoBackend

    @pytest.fixture(params=["linear", "masked", "lookup"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        graph: artifacts.Graph = getattr(artifacts, request.param)()
        own = {
            "masked": lambda rows: {**INPUTS["masked"](rows), "ids": RANDOM.integers(-(1 << 31), 1 << 31, (rows, 3))},
        }
        poison = {
            "masked": {"ids": np.array([[1 << 31, 0, 0]]), "keep": np.ones((1, 3), bool)},
            "lookup": {"index": np.zeros((2, 2, 2))},
        }
        inputs = own.get(request.param, INPUTS[request.param])
        return Case(graph.model, inputs, graph.function, (POISON_INPUTS | poison)[request.param])


class _OnTorch(BackendConformance):
    """Floats, whole numbers and truths in one module, as the converter of the backend makes a file of it."""

    @pytest.fixture
    def case(self) -> Case:
        poison = {**torch_files.inputs_of(2), "index": np.array([0, 99])}
        model = torch_files.mixed(self.backend_class.format)
        return Case(model, torch_files.inputs_of, torch_files.mixed_in_numpy, poison)

    def test_inputs_of_another_shape_are_refused(self, backend: Backend) -> None:
        """Compiled code would take them, and read past their end."""
        inputs = {**torch_files.inputs_of(2), "x": np.zeros((2, 3), np.float32)}
        with pytest.raises(SignatureError, match=r"'x' must have shape \[-1, 4\]; got \[2, 3\]"):
            backend.run(inputs)

    def test_several_threads_at_once_get_their_own_answers(self, backend: Backend) -> None:
        batches = [torch_files.inputs_of(3) for _ in range(40)]
        with ThreadPoolExecutor(4) as pool:
            for inputs, outputs in zip(batches, pool.map(backend.run, batches), strict=True):
                check_equal(outputs, torch_files.mixed_in_numpy(inputs))

    def test_torch_has_as_many_threads_as_before(self, backend: Backend, case: Case) -> None:
        """An export must not slow down the training after it."""
        before = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                backend.run(case.inputs(2))
                assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(before)


class TestTorchScript(_OnTorch):
    backend_class = TorchScriptBackend


class TestExported(_OnTorch):
    backend_class = ExportedBackend


class TestAotInductor(_OnTorch):
    backend_class = AotInductorBackend


@pytest.mark.parametrize("number", [1 << 31, -(1 << 31) - 1, 1 << 40])
def test_openvino_refuses_numbers_that_it_would_cut(number: int) -> None:
    """It would answer for another number, and not say so."""
    backend = OpenVinoBackend.load(artifacts.masked().model, ServingSettings())
    with pytest.raises(InputError, match=f"'ids' holds {number}; OpenVINO computes whole numbers in 32 bits"):
        backend.run({"ids": np.array([[number, 0, 0]]), "keep": np.ones((1, 3), bool)})


RANDOM = np.random.default_rng(0)
INPUTS = {
    "linear": lambda rows: {"x": RANDOM.standard_normal((rows, 4)).astype(np.float32)},
    "masked": lambda rows: {
        "ids": RANDOM.integers(-(1 << 40), 1 << 40, (rows, 3)),
        "keep": RANDOM.integers(0, 2, (rows, 3)) == 1,
    },
    "lookup": lambda rows: {"index": RANDOM.integers(0, 5, rows)},
}
POISON_INPUTS = {
    "linear": {"x": np.zeros((1, 5), np.float32)},
    "masked": {"ids": np.zeros((1, 3), np.int64)},
    "lookup": {"index": np.array([0, 99])},
}


def test_openvino_computes_batches_of_few_sizes() -> None:
    """Each size costs memory that it never gives back."""
    sizes = [some_rows(rows) for rows in range(1, 33)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert all(rows <= size <= 1.5 * rows for rows, size in enumerate(sizes, 1))
    graph = artifacts.total()
    backend = OpenVinoBackend.load(graph.model, ServingSettings())
    for rows in range(1, 14):
        inputs = {"x": np.random.default_rng(rows).standard_normal((rows, 5)).astype(np.float32)}
        check_equal(backend.run(inputs), graph.function(inputs))


def test_the_built_in_backend_is_found_by_its_name() -> None:
    assert plugins.load("backend", "onnxruntime") is OnnxBackend
    with pytest.raises(UnknownNameError, match=r"Unknown backend 'onnxruntim'\. Did you mean 'onnxruntime'\?"):
        plugins.load("backend", "onnxruntim")


def test_a_graph_is_kept_in_memory_once() -> None:
    """onnxruntime would keep the bytes of the file, too, which it has made its own weights of."""
    model = artifacts.linear().model
    before = sys.getrefcount(model)
    backend = OnnxBackend.load(model, ServingSettings())
    assert sys.getrefcount(model) == before
    backend.close()


def test_a_row_of_a_dynamic_size_is_taken_as_it_is() -> None:
    graph = artifacts.total()
    backend = OnnxBackend.load(graph.model, ServingSettings())
    for width in (1, 7, 300):
        inputs = {"x": np.ones((2, width), np.float32)}
        check_equal(backend.run(inputs), graph.function(inputs))


def test_threads_are_those_of_the_artifact_but_not_more_than_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    session = onnxruntime.InferenceSession

    def spy(model: bytes, options: onnxruntime.SessionOptions, **rest: object) -> onnxruntime.InferenceSession:
        seen.append(options.intra_op_num_threads)
        return session(model, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for threads in (1, 2, 64):
        OnnxBackend.load(artifacts.linear().model, ServingSettings(threads=threads))
    assert seen == [1, 2, 2]


@pytest.mark.parametrize("backend", ["onnx:OnnxBackend", "openvino:OpenVinoBackend"])
def test_no_runtime_gets_a_chance_to_report_home(tmp_path: Path, backend: str) -> None:
    """Both would when they are imported; importing the backend must have said no before."""
    module, name = backend.split(":")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests/support")!r})
import artifacts
from shipline.backends.{module} import {name}
from shipline.artifact import ServingSettings
{name}.load(artifacts.linear().model, ServingSettings())
"""
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    assert list(tmp_path.rglob("*")) == []
