"""The proof can fail: each gate says what is wrong, and by how much, and nothing is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
import pytest
import torch
from small_modules import Cells, CellTable, Digits, Tiny, fit
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import shipline as sl
from shipline.commands import main
from shipline.errors import ConfigError
from shipline.export.convert.onnx import to_onnx
from shipline.train import Run

# ---- each gate -------------------------------------------------------------------------------------------------------


def with_a_wrong_weight(by: float) -> Callable[..., bytes]:
    """A converter that gets one weight wrong."""

    def wrong(*arguments: Any) -> bytes:
        model = onnx.load_from_string(to_onnx(*arguments))
        bias = next(tensor for tensor in model.graph.initializer if list(tensor.dims) == [10])
        values = onnx.numpy_helper.to_array(bias).copy()
        values[3] += by
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return bytes(model.SerializeToString())

    return wrong


def test_parity(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shipline.export.convert.onnx.to_onnx", with_a_wrong_weight(by=2.0))
    said = refused(recipe={"max_metric_drop": 1})
    assert "m as float32 on onnxruntime failed 1 of 6 gates; nothing was published" in said
    assert "parity: outputs differ from the trained module's by 0." in said
    assert "of their largest value at most (row " in said
    assert "output 'output', in a batch of " in said
    assert "0.0001 is allowed" in said


def test_what_float32_cannot_answer_does_not_hide_behind_the_tolerance_of_int8(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shipline.export.convert.onnx.to_onnx", with_a_wrong_weight(by=0.2))
    said = refused(recipe={"precision": "int8", "min_speedup": 0, "max_metric_drop": 1})
    assert "m as float32 on onnxruntime failed 1 of 5 gates" in said
    assert "parity: " in said
    assert "0.0001 is allowed" in said


def test_batch_invariance(refused: Callable[..., str]) -> None:
    class SubtractsTheMean(Tiny):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x - x.mean(0))

    said = refused(SubtractsTheMean, {"tolerance": 10, "max_metric_drop": 1})
    assert "failed 2 of 6 gates" in said
    assert "not_finite: a row of NaN or infinity changes another row's answer by inf (row 1, " in said
    assert "batch_invariance: a row's answer alone and among others differs by " in said
    assert "in a batch of 32); 0.0001 is allowed" in said


class DarkTraining(Digits):
    """Training rows so unlike those that validate that int8 scales measured on them clip nearly everything."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        x, y = self.train.tensors
        self.train = TensorDataset(x * 0.05, y)


COARSE = {"precision": "int8", "tolerance": 10, "min_speedup": 0}


def test_the_metric(refused: Callable[..., str]) -> None:
    said = refused(recipe=COARSE, data=DarkTraining())
    assert "m as int8 on onnxruntime failed 1 of 8 gates" in said
    assert "metric: val_acc is 0." in said
    assert "the trained module's is 0." in said
    assert ": worse by 0." in said
    assert "0.005 is allowed" in said


def test_a_metric_that_should_be_low(refused: Callable[..., str]) -> None:
    settings = {"metric": "val_loss", "mode": "min", "max_metric_drop": 0}
    said = refused(recipe={**COARSE, **settings}, data=DarkTraining())
    assert "metric: val_loss is " in said
    assert ": worse by " in said
    assert "; 0 is allowed" in said


def test_latency(refused: Callable[..., str]) -> None:
    said = refused(recipe={"precision": "int8", "min_speedup": 1000, "max_metric_drop": 1})
    assert "failed 1 of 8 gates" in said
    assert "times as fast as float32 on this machine (" in said
    assert "x at batch 1, " in said
    assert "x at batch 32); 1000 is needed" in said


def test_size(refused: Callable[..., str], tmp_path: Path) -> None:
    """What says how to dequantise so few weights is larger than they are."""
    run = fit(Tiny(width=2), Digits(), tmp_path / "runs", epochs=1, limit_train_batches=1)
    said = refused(recipe={"precision": "int8", "min_speedup": 0, "tolerance": 10, "max_metric_drop": 1}, run=run)
    assert "failed 1 of 8 gates" in said
    assert "size: " in said
    assert "of the float32 graph's " in said
    assert "; less is needed" in said


def test_preprocessing(refused: Callable[..., str], trained_cells: Run) -> None:
    class Rounds(CellTable):
        """Hands out other rows than those that the module was validated on."""

        def raw_rows(self) -> Iterable[Any]:
            rows = list(super().raw_rows())[:10]
            return [*rows[:7], *({name: round(value) for name, value in row.items()} for row in rows[7:])]

    said = refused(Cells, run=trained_cells, data=Rounds())
    assert "m as float32 on onnxruntime failed 1 of 7 gates" in said
    assert "preprocessing: 7 of 10 raw rows, once processed, are rows that the module was validated on" in said
    assert "raw row 7 is the first that is not" in said


def test_a_gate_that_fails_ends_the_command_with_3(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], command_line: list[str]
) -> None:
    options = ["--recipe.precision", "int8", "--recipe.min_speedup", "1000", "--recipe.max_metric_drop", "1"]
    assert main([*command_line, *options]) == 3
    said = capsys.readouterr().err
    assert "shipline export: m as int8 on onnxruntime failed 1 of 8 gates; nothing was published" in said
    assert "1000 is needed" in said
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--recipe.metric", "val_ac"], 2, "Did you mean 'val_acc'?"),
        (["--recipe.precison", "int8"], 2, "unknown option --recipe.precison. Did you mean --recipe.precision?"),
        (["--recipe.golden_rows", "0"], 2, "golden_rows=0; set a whole number from 1 on"),
        (["--version", "newest"], 2, "version is 'newest'; versions are numbers"),
    ],
)
def test_a_setting_that_is_wrong_ends_the_command_with_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command_line: list[str],
    options: list[str],
    code: int,
    said: str,
) -> None:
    assert main([*command_line, *options]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


# ---- modules that cannot be proved -----------------------------------------------------------------------------------


def test_weights_that_are_not_numbers(refused: Callable[..., str], tmp_path: Path) -> None:
    class Diverged(Tiny):
        def on_validation_start(self) -> None:
            with torch.no_grad():
                self.net[3].bias[4] = torch.inf  # type: ignore[index, operator]

    run = fit(Diverged(), Digits(), tmp_path / "runs", epochs=1, limit_train_batches=1, num_sanity_val_steps=0)
    said = refused(Tiny, run=run)
    assert "has 1 NaN or infinite values in 'net.3.bias' (10 in all): the run diverged" in said


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_outputs_that_are_not_numbers(refused: Callable[..., str], bad: float) -> None:
    class Divides(Tiny):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.where(x[:, 2:3] > 0.9, bad, super().forward(x))

    data = Digits()
    data.setup("validate")
    bad_rows = data.val.tensors[0][:, 2] > 0.9
    said = f"{bad_rows.sum()} of {len(bad_rows)} validation rows, first in row {bad_rows.nonzero()[0].item()}"
    assert f"NaN or infinite in {said}" in refused(Divides)


class Decides(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) if bool(x.sum() > 0) else super().forward(-x)


class HasNoOperator(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) + torch.linalg.eigvalsh(x[:, :4, None] * x[:, None, :4])[:, :1]


class KnowsItsBatch(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) * (1 if x.shape[0] == 2 else 2)


class ComputesInBfloat16(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        layer = self.net[3]
        hidden = self.net[:2](x).bfloat16()
        return F.linear(hidden, layer.weight.bfloat16(), layer.bias.bfloat16()).float()  # type: ignore[arg-type, operator, union-attr]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (Decides, "forward of Decides decides by the values of its inputs at test_gates.py:"),
        (HasNoOperator, "No ONNX function found for <OpOverload(op='aten._linalg_eigh'"),
        (KnowsItsBatch, "inferred a static shape of 2 for dimension inputs['x'].shape[0]"),
        (ComputesInBfloat16, "onnxruntime cannot load the graph, so nothing was published"),
    ],
)
def test_a_module_that_the_runtime_cannot_have(refused: Callable[..., str], module: type[Tiny], said: str) -> None:
    assert said in refused(module)


class AttendsToTheBatch(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x)[:, None].expand(-1, x.shape[0], -1)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x)[:, 0]
        return out


class AlwaysDropsOut(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(F.dropout(x, 0.5, training=True))


def test_a_module_that_draws_is_no_function(refused: Callable[..., str]) -> None:
    said = refused(AlwaysDropsOut)
    assert "AlwaysDropsOut answers the same rows otherwise when it is asked again: 'output' differs by " in said
    assert "Its forward draws random numbers or keeps something between calls, which a graph cannot" in said


class AddsNothing(Tiny):
    """To a row, of all rows: which is something where one of them is not finite."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x + 0 * x.sum(0))


@pytest.mark.parametrize(
    ("module", "failed"),
    [
        (AttendsToTheBatch, {"parity", "batch_invariance"}),
        (AddsNothing, {"not_finite"}),
    ],
)
def test_a_module_whose_rows_look_at_each_other(
    refused: Callable[..., str], module: type[Tiny], failed: set[str]
) -> None:
    class Even(Digits):
        """Batches of one size, so that no shape differs before the gates look."""

        def setup(self, stage: str) -> None:
            super().setup(stage)
            self.val = TensorDataset(*(tensor[:256] for tensor in self.val.tensors))

    said = refused(module, {"max_metric_drop": 1}, data=Even())
    assert {line.partition(":")[0].strip() for line in said.splitlines()[1:]} == failed


# ---- the metric that counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"metric": "val_accu"}, "'val_accu' is not logged by validation_step. Did you mean 'val_acc'? It logs: val_"),
        ({"metric": "val_loss"}, "Is a high 'val_loss' good, or a low one? Set the recipe's mode to 'max' or 'min'"),
    ],
)  # fmt: skip
def test_a_metric_that_cannot_be_judged(refused: Callable[..., str], recipe: dict[str, str], said: str) -> None:
    assert said in refused(recipe=recipe, error=ConfigError)


def test_a_run_that_monitored_nothing_needs_a_metric(refused: Callable[..., str], tmp_path: Path) -> None:
    unmonitored: dict[str, Any] = {"epochs": 1, "limit_train_batches": 1, "callbacks": []}
    run = fit(Tiny(), Digits(), tmp_path / "runs", **unmonitored)
    said = refused(run=run, error=ConfigError)
    assert "Which metric counts? The run monitored none" in said
    assert "validation_step logs: val_acc, val_loss" in said
    sl.export(run, {"metric": "val_acc", "mode": "max"}, to=str(tmp_path / "m"))
