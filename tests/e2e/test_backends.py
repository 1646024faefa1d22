"""Each backend serves over HTTP what was proved through it, and the server needs no torch for that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_modules import Cells, CellTable, fit

import shipline as sl
from shipline.serve.golden import GoldenRows
from shipline.serve.server import BackgroundServer
from shipline.train import Run

TORCH = ("torchscript", "torch-export", "aotinductor")
LAX = {"min_speedup": 0.0, "tolerance": 0.2, "max_metric_drop": 0.05}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network trained on a table, from raw rows to labels."""
    return fit(Cells(), CellTable(), tmp_path_factory.mktemp("cells"))


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("onnxruntime", "float32"),
        *[(name, f) for name in ("openvino", *TORCH) for f in ("float32", "bfloat16")],
    ],
)
def test_golden_rows_agree_over_http(trained: Run, tmp_path: Path, backend: str, precision: str) -> None:
    artifact = sl.export(trained, {"precision": precision, "backend": backend, **LAX}, to=f"{tmp_path}/models/cells")
    assert (artifact.manifest.backend, artifact.manifest.serving.compute) == (
        backend, "bfloat16" if precision == "bfloat16" else "float32",
    )  # fmt: skip
    rows = GoldenRows(artifact)
    with BackgroundServer(f"{tmp_path}/models", trust=[str(tmp_path)]) as server, sl.Client(server.url) as client:
        outputs = client.infer("cells", rows.inputs)
        for name, want in rows.outputs.items():
            assert np.abs(outputs[name] - want).max() <= artifact.manifest.tolerance[name]
        for raw, want in zip(rows.raw, rows.answers, strict=True):
            assert client.predict("cells", raw)["label"] == want["label"]


def test_openvino_is_served_without_torch(trained: Run, tmp_path: Path) -> None:
    sl.export(trained, {"backend": "openvino", **LAX}, to=f"{tmp_path}/models/cells")
    code = f"""
import sys
from shipline.serve.server import BackgroundServer
with BackgroundServer({f"{tmp_path}/models"!r}):
    print(sorted({{"torch", "onnx", "onnxruntime", "openvino"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "['openvino']"


def test_torchscript_is_served_without_torch_in_the_server(trained: Run, tmp_path: Path) -> None:
    sl.export(trained, {"backend": "torchscript", **LAX}, to=f"{tmp_path}/models/cells")
    code = f"""
import sys
from shipline.serve.server import BackgroundServer
with BackgroundServer({f"{tmp_path}/models"!r}, trust=[{str(tmp_path)!r}]):
    print(sorted({{"torch", "onnx", "onnxruntime", "openvino", "torch._inductor"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
