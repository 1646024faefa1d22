"""What the serving benchmark asks for: three ONNX files, real rows for each, and the right answers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

import shipline as sl

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support")]

ROWS = 64
TOKENS = 32

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Workload:
    """A model of the repository, rows for it, and onnxruntime's answers to them one by one."""

    name: str
    file: Path
    rows: Arrays  # input name -> [ROWS, ...]
    expected: np.ndarray

    def row(self, number: int) -> Arrays:
        """Return one row, with its batch dimension."""
        return {name: array[number : number + 1] for name, array in self.rows.items()}


def session(file: Path, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return the model as every server of the benchmark has it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def mlp() -> tuple[nn.Module, Arrays]:
    """64-256-256-10 on scanned digits: a server's own cost is all there is."""
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return net, {"x": (load_digits().data[:ROWS] / 16).round(4).astype(np.float32)}


class Block(nn.Module):
    """Two convolutions and a way past them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1), nn.ReLU(), nn.Conv2d(outside, outside, 3, 1, 1)
        )
        self.skip = nn.Conv2d(inside, outside, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both ways."""
        return torch.relu(self.main(x) + self.skip(x))


def cnn(width: int = 56) -> tuple[nn.Module, Arrays]:
    """A small residual network on squares of photographs, 3x64x64: about 97 KB of JSON."""
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), Block(width, width, 1), Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip
    squares = [
        photograph[y : y + 64, x : x + 64].transpose(2, 0, 1)
        for photograph in load_sample_images().images
        for y in range(0, 320, 64)
        for x in range(0, 576, 64)
    ]
    return net, {"image": (np.stack(squares[:ROWS]) / 255).round(4).astype(np.float32)}


def exported(build: Callable[[], tuple[nn.Module, Arrays]], file: Path) -> Arrays:
    """Write the model as an ONNX file of any batch, and return its rows."""
    torch.manual_seed(0)
    module, rows = build()
    arguments = tuple(torch.from_numpy(array[:2]) for array in rows.values())
    torch.onnx.export(
        module.eval(), arguments, str(file), input_names=list(rows), output_names=["output"], dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},), external_data=False, verbose=False,
    )  # fmt: skip
    return rows


def minilm(file: Path) -> Arrays:
    """Write all-MiniLM-L6-v2 as an ONNX file, and return sentences of 32 tokens."""
    from texts import MINILM, SENTENCES

    source = sl.huggingface(MINILM, max_length=TOKENS, pad_to_multiple_of=None)
    sentences = SENTENCES[:ROWS]
    artifact = sl.export(source, "float32", rows=SENTENCES, to=str(file.parent / "exported" / "minilm"))
    file.write_bytes(artifact.read("model.onnx"))
    prepared = [source.processing.prepare(text) for text in sentences]
    return {name: np.stack([row[name] for row in prepared]) for name in prepared[0]}


def workload(name: str, repository: Path) -> Workload:
    """Put a model into the repository, as a plain file, and return what to ask for."""
    repository.mkdir(parents=True, exist_ok=True)
    file = repository / f"{name}.onnx"
    if name == "minilm":
        scratch = repository.parent / "minilm"
        scratch.mkdir()
        rows = minilm(scratch / "model.onnx")
        (scratch / "model.onnx").replace(file)
    else:
        rows = exported({"mlp": mlp, "cnn": cnn}[name], file)
    found = session(file)
    answers = [
        found.run(None, {n: array[number : number + 1] for n, array in rows.items()})[0] for number in range(ROWS)
    ]
    return Workload(name, file, rows, np.concatenate(answers))
