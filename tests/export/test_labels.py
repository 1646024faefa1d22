"""Where the right classes of validation rows are known, what each class loses is told, and may be limited."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from sklearn.datasets import load_digits
from small_modules import Digits, Tiny
from torch import nn

import shipline as sl
from shipline.artifact import Artifact
from shipline.errors import ConfigError, GateError
from shipline.export import gates, on_rows, source_of
from shipline.export.comparison import Comparison, Scored
from shipline.export.labels import labels_in, noting_labels
from shipline.export.passes.base import GraphPass, Material
from shipline.export.rows import Rows, recording
from shipline.export.trained import Trained, look_at

X = torch.tensor(load_digits().data[:64] / 16, dtype=torch.float32)
Y = torch.tensor(load_digits().target[:64])


def noted(step: Any) -> np.ndarray | None:
    """The labels of three batches that a step is given, of which the limit cuts the last."""

    class Stepped(Tiny):
        validation_step = step

    module = Stepped().eval()
    with recording(module, 40) as rows, noting_labels(module, rows):
        for start in (0, 16, 32):
            module.validation_step([X[start : start + 16], Y[start : start + 16]], 0)
    assert "validation_step" not in module.__dict__
    return rows.labels


def test_a_validation_step_is_given_them(looked_at: Trained) -> None:
    data = Digits()
    data.setup("fit")
    np.testing.assert_array_equal(looked_at.rows.labels, data.val.tensors[1][:256])


def test_those_of_the_recorded_rows_count() -> None:
    labels = noted(lambda self, batch, number: self(batch[0]))
    np.testing.assert_array_equal(labels, Y[:40])


@pytest.mark.parametrize(
    "step",
    [lambda self, batch, _: (self(batch[0]), self(batch[0])), lambda self, batch, _: None],
    ids=["forward twice", "no forward"],
)
def test_they_are_for_one_call_of_forward(step: Any) -> None:
    assert noted(step) is None


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ((X[:4], Y[:4]), True),
        ({"image": X[:4], "digit": Y[:4, None]}, True),
        ((X[:4], Y[:4].int()), True),
        ((X[:4], Y[:4].float()), False),
        ((X[:4], Y[:4] > 3), False),
        ((X[:4], Y[:4], Y[4:8]), False),
        ((X[:4], Y[:3]), False),
        ((X[:4], Y[:4].tolist()), False),
        (X[:4], False),
    ],
)
def test_one_whole_number_for_each_row_is_a_class(batch: Any, found: bool) -> None:
    labels = labels_in(batch, 4)
    assert (labels is not None) is found
    if labels is not None:
        np.testing.assert_array_equal(labels, Y[:4])


def test_what_forward_is_given_is_no_answer() -> None:
    """A module that looks its inputs up, and learns a number."""
    kinds, price = torch.tensor([1, 0, 2]), torch.rand(3)
    assert labels_in((kinds, price), 3) is not None
    assert labels_in((kinds, price), 3, {kinds.data_ptr()}) is None


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(1) == targets).float().mean()


@pytest.mark.parametrize("labelled", [True, False])
def test_rows_with_targets_have_them(labelled: bool) -> None:
    source = source_of(nn.Linear(64, 10))
    if labelled:
        source = on_rows(source, (X.numpy(), Y.numpy()), metric=accuracy, mode="max")
    else:
        source = on_rows(source, X.numpy())
    labels = look_at(source, sl.Recipe()).rows.labels
    assert (labels is not None) is labelled
    if labels is not None:
        np.testing.assert_array_equal(labels, Y)


def test_none_are_known_where_one_batch_has_none() -> None:
    rows = Rows(8)
    for labels in (Y[:4].numpy(), None):
        rows.add({"x": X[:4]}, X[:4])
        rows.add_labels(labels)
    assert rows.labels is None


def test_the_report_has_the_accuracy_of_each_class(artifacts: dict[str, Artifact], looked_at: Trained) -> None:
    content = json.loads(artifacts["int8"].read("report.json"))
    [chosen] = [each for each in content["candidates"] if each["chosen"]]
    labels, answers = looked_at.rows.labels, looked_at.rows.outputs[0].argmax(1)
    assert labels is not None
    assert [each["number"] for each in chosen["classes"]] == list(range(10))
    for each in chosen["classes"]:
        of_class = labels == each["number"]
        assert each["rows"] == of_class.sum()
        assert each["trained"] == (answers[of_class] == each["number"]).sum()
        assert each["drop"] == pytest.approx((each["trained"] - each["right"]) / each["rows"])
    assert "Accuracy by class" in artifacts["int8"].read("report.html").decode()


def comparison(*right: int) -> Comparison:
    return Comparison([], [], [Scored(i, f"class {i}", 10, 8, each) for i, each in enumerate(right)])


def test_the_class_that_loses_most_is_judged() -> None:
    verdict = gates.classes(comparison(8, 5, 9).worst_class, 0.1)
    assert not verdict.passed
    assert verdict.measured == pytest.approx(0.3)
    assert verdict.message == (
        "of class 'class 1' 5 of 10 rows are answered right, by the trained module 8: worse, and no class loses more; "
        "0.1 is allowed"
    )
    assert gates.classes(comparison(8, 9).worst_class, 0.0).passed


@dataclass(frozen=True)
class NeverThree(GraphPass):
    """Spoils one class of ten."""

    shrinks: ClassVar[bool] = False
    precision: ClassVar[str] = "spoilt"
    tolerance: ClassVar[float] = 1e3

    def apply(self, model: bytes, material: Material) -> bytes:
        graph = onnx.load_from_string(model)
        [bias] = [tensor for tensor in graph.graph.initializer if list(tensor.dims) == [10]]
        values = onnx.numpy_helper.to_array(bias).copy()
        values[3] -= 100
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return bytes(graph.SerializeToString())


def test_a_class_that_loses_too_much_is_not_published(tmp_path: Path) -> None:
    """Though the metric, which is of all classes together, allows it."""
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        module = nn.Linear(64, 10)
        module.bias[3] += 0.5
    targets = module(X).argmax(1).numpy()
    assert (targets == 3).any()
    recipe = {"passes": (NeverThree(),), "max_metric_drop": 1.0, "min_speedup": 0.0}
    rows = {"rows": (X.numpy(), targets), "metric": accuracy, "mode": "max"}
    artifact = sl.export(module, sl.Recipe(max_class_drop=1.0, **recipe), **rows, to=str(tmp_path / "m"))
    assert "classes" in [each.gate for each in artifact.manifest.verdicts]
    with pytest.raises(GateError, match=r"classes: of class '3' 0 of \d+ rows are answered right"):
        sl.export(module, sl.Recipe(max_class_drop=0.0, **recipe), **rows, to=str(tmp_path / "n"))


def test_a_limit_needs_classes_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_class_drop=0, and the right classes of the validation rows are not kno"):
        sl.export(nn.Linear(64, 10), sl.Recipe(max_class_drop=0), rows=X.numpy(), to=str(tmp_path / "m"))


def test_a_limit_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_class_drop=-1; set a number from 0 on"):
        sl.Recipe(max_class_drop=-1)
