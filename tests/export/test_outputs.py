"""What forward may give: tensors in dicts, tuples, dataclasses and named tuples; None is what was not asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from small_modules import Does

import shipline as sl

_IMAGES, _LABELS = load_digits(return_X_y=True)
X, Y = torch.tensor(_IMAGES[:300] / 16, dtype=torch.float32), torch.tensor(_LABELS[:300])


def accuracy(logits: torch.Tensor) -> torch.Tensor:
    return (logits.argmax(1) == Y).float().mean()


@dataclasses.dataclass
class Parts:
    top: Any
    rest: Any = None
    bottom: Any = None


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: {"top": x[:, :3], "a b": x[:, 3:]}, ["top", "a b"]),
        (lambda x: (x[:, :3], x[:, 3:]), ["output_0", "output_1"]),
        (lambda x: Parts(x[:, :3], bottom=x[:, 3:]), ["top", "bottom"]),
        (lambda x: Pair(x[:, :3], x[:, 3:]), ["first", "second"]),
        (lambda x: {"loss": None, "logits": x[:, :3], "hidden": x[:, 3:]}, ["logits", "hidden"]),
        (lambda x: (None, x[:, :3], None, x[:, 3:]), ["output_0", "output_1"]),
    ],
)
def test_outputs_have_names(function: Callable[..., Any], names: list[str], tmp_path: Path) -> None:
    found = sl.export(Does(function), rows=X[:40], to=str(tmp_path / "m")).manifest
    assert [(spec.name, spec.shape) for spec in found.signature.outputs] == [(names[0], (-1, 3)), (names[1], (-1, 61))]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torchscript", "torch-export"])
def test_what_was_not_asked_for_is_none_to_metrics_too(backend: str, tmp_path: Path) -> None:
    """As transformers' modules answer without labels."""

    def right(outputs: dict[str, Any], _: torch.Tensor) -> torch.Tensor:
        assert outputs["loss"] is None
        return accuracy(outputs["logits"])

    module = Does(lambda x: {"loss": None, "logits": x[:, :10] * 2})
    recipe = sl.Recipe(backend=backend, min_speedup=0)
    found = sl.export(module, recipe, rows=(X, Y), metric=right, mode="max", to=str(tmp_path / "m")).manifest
    assert [spec.name for spec in found.signature.outputs] == ["logits"]
    assert found.metrics["right"] == float(accuracy(X[:, :10]))
