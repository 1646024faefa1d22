"""The proof can fail: each gate says what is wrong, and by how much, and nothing is published."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from small_modules import Cells, CellTable, Digits, Tiny, fit
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import shipline as sl
from shipline.commands import main
from shipline.errors import ConfigError, GateError, ShiplineError, SignatureError
from shipline.export import gates
from shipline.export.convert.onnx import to_onnx
from shipline.export.latency import Latency
from shipline.export.recipe import Recipe
from shipline.export.rows import Rows
from shipline.train import Run


@pytest.fixture
def refused(trained: Run, tmp_path: Path) -> Callable[..., str]:
    """Export the trained weights as a module of another class or by another recipe; what is said of the failure."""

    def refused(
        module: type[Tiny] = Tiny, recipe: Any = "float32", error: type[ShiplineError] = GateError, **given: Any
    ) -> str:
        with pytest.raises(error) as caught:
            sl.export(given.pop("run", trained), recipe, to=str(tmp_path / "models" / "m"), module=module, **given)
        assert not (tmp_path / "models").exists(), "something was left in the store"
        return str(caught.value)

    return refused


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
    rows = torch.nonzero(data.val.tensors[0][:256, 2] > 0.9).flatten()
    assert f"NaN or infinite in {len(rows)} of 256 validation rows, first in row {rows[0]}" in refused(Divides)


class NeverCallsForward(Tiny):
    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.net(x)
        return out


class TakesASetting(Tiny):
    def forward(self, x: torch.Tensor, scale: float = 1.0) -> Any:
        return super().forward(x) * scale

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x, scale=2.0)
        return out


class GivesAMean(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).mean()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x).expand(len(x), 10)
        return out


class GivesOneRow(GivesAMean):
    def forward(self, x: torch.Tensor) -> Any:
        return Tiny.forward(self, x).mean(0)


class GivesAList(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return {"logits": super().forward(x), "classes": 10}

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x)["logits"]
        return out


class SometimesMasks(Tiny):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        return super().forward(x if mask is None else x * mask)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x) if len(x) == 64 else self(x, torch.ones_like(x))
        return out


class GivesItsInput(Tiny):
    def forward(self, x: torch.Tensor) -> Any:
        return {"logits": super().forward(x), "x": x * 2}

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self(x)["logits"]
        return out


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (NeverCallsForward, "validation_step of NeverCallsForward never called forward, so there is nothing to export"),
        (TakesASetting, "forward was given scale=float; an exported graph takes tensors alone"),
        (GivesAMean, "output 0 of forward is no tensor with a batch dimension"),
        (
            GivesOneRow,
            "The first dimension of all inputs and outputs must be the batch; found {'x': 64, 'output 0': 10",
        ),
        (GivesAList, "output 1 of forward is no tensor with a batch dimension"),
        (SometimesMasks, "calls forward with x and with x, mask; a graph takes the same inputs in every call"),
        (GivesItsInput, "x is the name of an input and of an output of GivesItsInput"),
    ],
)
def test_a_forward_that_no_graph_can_have(refused: Callable[..., str], module: type[Tiny], said: str) -> None:
    assert said in refused(module, error=SignatureError)


def declared(inputs: list[tuple[str, str, list[int]]], outputs: list[tuple[str, str, list[int]]]) -> sl.Signature:
    first, second = (
        tuple(sl.TensorSpec(name=name, dtype=dtype, shape=tuple(shape)) for name, dtype, shape in specs)
        for specs in (inputs, outputs)
    )
    return sl.Signature(inputs=first, outputs=second)


IN, OUT = ("pixels", "float32", [-1, 64]), ("logits", "float32", [-1, 10])


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ([("pixel", *IN[1:])], [OUT], "'pixel', which forward does not take. Did you mean 'pixels'? forward takes: "),
        ([IN, ("mask", *IN[1:])], [OUT], "'mask', which forward does not take"),
        ([("pixels", "float64", [-1, 64])], [OUT], "'pixels' must be float64; got float32"),
        ([("pixels", "float32", [-1, 8, 8])], [OUT], "'pixels' must have shape [-1, 8, 8]; got [256, 64]"),
        ([("pixels", "float32", [-1, 32])], [OUT], "'pixels' must have shape [-1, 32]; got [256, 64]"),
        ([("pixels", "float32", [-1, -1])], [OUT], "leaves 'pixels' open in a dimension besides the batch ([-1, -1])"),
        ([IN], [OUT, ("again", *OUT[1:])], "names 2 outputs; forward gives 1"),
        ([IN], [("logits", "int64", [-1, 10])], "'logits' must be int64; got float32"),
        ([IN], [("logits", "float32", [-1, 9])], "'logits' must have shape [-1, 9]; got [256, 10]"),
        ([IN], [("pixels", *OUT[1:])], "pixels is the name of an input and of an output"),
    ],
)  # fmt: skip
def test_a_declared_signature_that_real_rows_do_not_fit(
    refused: Callable[..., str], inputs: Any, outputs: Any, said: str
) -> None:
    class Declares(Tiny):
        signature = declared(inputs, outputs)

        def forward(self, pixels: torch.Tensor) -> Any:
            return super().forward(pixels)

    assert said in refused(Declares, error=SignatureError)


def test_a_declared_signature_that_leaves_out_an_input(refused: Callable[..., str]) -> None:
    class Declares(Tiny):
        signature = declared([("x", "float32", [-1, 64])], [OUT])

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
            return super().forward(x * mask)

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self(x, torch.ones_like(x))
            return out

    assert "Unknown input 'mask'; known: x" in refused(Declares, error=SignatureError)


def test_a_declared_signature_that_names_outputs_in_another_order(refused: Callable[..., str]) -> None:
    """Both have one shape, so that nothing else would notice that the names are swapped."""

    class Declares(Tiny):
        signature = declared([("x", "float32", [-1, 64])], [("probabilities", *OUT[1:]), ("logits", *OUT[1:])])

        def forward(self, x: torch.Tensor) -> Any:
            out = super().forward(x)
            return {"logits": out, "probabilities": out.softmax(1)}

        def logits(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self(x)["logits"]
            return out

    said = refused(Declares, error=SignatureError)
    assert "names the outputs probabilities, logits; forward gives logits, probabilities, in this order" in said


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


# ---- answers, again and again ----------------------------------------------------------------------------------------


class Drifting:
    """Answers with its rows, plus as much more each time."""

    def __init__(self, by: float) -> None:
        self._by, self._more = by, 0.0

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self._more += self._by
        return [inputs["x"] + np.float32(self._more)]


def rows_of(values: np.ndarray) -> tuple[Rows, sl.Signature]:
    """Rows of a module that answers with its input."""
    rows = Rows(len(values))
    rows.add({"x": torch.from_numpy(values)}, torch.from_numpy(values))
    spec = sl.TensorSpec(name="x", dtype="float32", shape=(-1, *values.shape[1:]))
    return rows, sl.Signature(inputs=(spec,), outputs=(spec.model_copy(update={"name": "y"}),))


class WrongInSome:
    """Answers with its input, and in batches of some sizes with one more; keeps how large they were."""

    def __init__(self, *sizes: int) -> None:
        self._sizes = sizes
        self.batches: list[int] = []

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.batches.append(len(inputs["x"]))
        return [inputs["x"] + np.float32(self.batches[-1] in self._sizes)]


@pytest.mark.parametrize(
    ("largest", "sizes"),
    [(1, {1, 2}), (2, {1, 2}), (3, {1, 2, 3, 70 % 3}), (4, {1, 2, 3, 4, 70 % 4}), (32, {1, 2, 3, 17, 31, 32, 70 % 32})],
)
def test_parity_is_asked_for_in_batches_of_many_sizes(largest: int, sizes: set[int]) -> None:
    rows, signature = rows_of(np.linspace(0, 1, 70, dtype=np.float32)[:, None])
    runtime: Any = WrongInSome()
    assert gates.parity(runtime, rows, signature, largest, 1e-4)[0].passed
    assert set(runtime.batches) == sizes
    assert sum(runtime.batches) < 2.5 * (32 + 64 + 70)


@pytest.mark.parametrize("size", [1, 2, 3, 17, 31, 32, 6])
def test_an_answer_that_is_wrong_in_batches_of_one_size_is_seen(size: int) -> None:
    rows, signature = rows_of(np.linspace(0, 1, 70, dtype=np.float32)[:, None])
    runtime: Any = WrongInSome(size)
    verdict, worst = gates.parity(runtime, rows, signature, 32, 1e-4)
    assert not verdict.passed
    assert (worst.batch, worst.difference) == (size, pytest.approx(1.0))
    assert f"in a batch of {size}); 0.0001 is allowed" in verdict.message


@pytest.mark.parametrize(
    ("by", "other", "said"),
    [
        (0.0, 0.0, "the same rows are answered alike, run again and with 4 threads"),
        (0.1, 0.0, "the same rows differ by 0.3 of the largest value (run again)"),
        (0.0, 0.2, "the same rows differ by 0.2 of the largest value (with 4 threads)"),
    ],
)
def test_answers_must_not_change(by: float, other: float, said: str) -> None:
    rows, signature = rows_of(np.linspace(0, 1, 8, dtype=np.float32)[:, None])
    runtimes: Any = Drifting(by), {4: Drifting(other)}
    verdict = gates.determinism(*runtimes, rows, signature, 8, 1e-4)
    assert verdict.message == said
    assert verdict.passed is (by == other == 0.0)


def test_a_row_that_is_not_finite_is_told_from_its_mates() -> None:
    class Hides:
        """Makes numbers of what is not finite, as whole numbers of 8 bits do."""

        def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.nan_to_num(inputs["x"], posinf=1.0)]

    rows, signature = rows_of(np.linspace(0, 1, 8, dtype=np.float32)[:, None])
    hiding: Any = Hides()
    verdict = gates.not_finite(hiding, rows, signature, 8, 1e-4)
    assert verdict is not None
    assert verdict.passed
    assert verdict.message.endswith("its own is made of ordinary numbers, as if nothing were wrong")
    telling: Any = Drifting(0.0)
    verdict = gates.not_finite(telling, rows, signature, 8, 1e-4)
    assert verdict is not None
    assert verdict.message == "a row of NaN or infinity changes no other row's answer; its own says so"


def test_whole_numbers_are_always_finite() -> None:
    rows = Rows(2)
    rows.add({"x": torch.ones(2, 1, dtype=torch.int64)}, torch.ones(2, 1))
    nobody: Any = None
    assert gates.not_finite(nobody, rows, nobody, 2, 0.0) is None


# ---- verdicts, one by one --------------------------------------------------------------------------------------------


class TestMetricVerdicts:
    """What is worse, in which direction, and by how much."""

    CASES: ClassVar = [
        ("max", 0.9, 0.9, True, "no worse"),
        ("max", 0.9, 0.95, True, "no worse"),
        ("max", 0.9, 0.896, True, "worse by 0.004"),
        ("max", 0.9, 0.89, False, "worse by 0.01"),
        ("min", 0.3, 0.29, True, "no worse"),
        ("min", 0.3, 0.304, True, "worse by 0.004"),
        ("min", 0.3, 0.31, False, "worse by 0.01"),
        ("max", 0.9, float("nan"), False, "worse by nan"),
        ("max", float("nan"), 0.9, False, "worse by nan"),
        ("max", 0.9, float("inf"), False, "no worse"),
    ]

    @pytest.mark.parametrize(("mode", "trained", "exported", "passed", "said"), CASES)
    def test_verdict(self, mode: str, trained: float, exported: float, passed: bool, said: str) -> None:
        verdict = gates.metric("val_x", mode, trained, exported, 0.005)
        assert verdict.passed is passed
        assert said in verdict.message
        assert verdict.measured is None or np.isfinite(verdict.measured)


def taken(batch: int, median: float) -> Latency:
    return Latency(batch, median, median, median, (median,))


@pytest.mark.parametrize(
    ("fast", "needed", "passed", "measured"),
    [
        ((1.0, 1.0), 1.0, True, 2.0),
        ((4.0, 1.0), 1.0, True, 1.0),
        ((4.0, 2.0), 1.0, False, 0.7071),
        ((1.0, 1.0), 2.1, False, 2.0),
    ],
)
def test_a_speed_up_is_the_geometric_mean_over_the_batches(
    fast: tuple[float, float], needed: float, passed: bool, measured: float
) -> None:
    candidate, baseline = [taken(1, fast[0]), taken(32, fast[1])], [taken(1, 2.0), taken(32, 2.0)]
    verdict = gates.latency(candidate, baseline, Recipe(min_speedup=needed))
    assert verdict.passed is passed
    assert verdict.measured == pytest.approx(measured, abs=1e-4)


@pytest.mark.parametrize(("candidate", "passed"), [(99, True), (100, False), (101, False)])
def test_a_size_must_be_less(candidate: int, passed: bool) -> None:
    assert gates.size(candidate, 100).passed is passed


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([np.nan, 1.0], [np.nan, 1.0], 0.0),
        ([np.inf, 1.0], [np.inf, 3.0], 2.0),
        ([np.nan], [1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([np.inf], [-np.inf], np.inf),
        ([np.inf], [1.0], np.inf),
        ([1.0, 2.0], [1.0], np.inf),
        ([3], [5], 2.0),
        ([True], [False], 1.0),
        (np.float32(1.5), np.float32(1.0), 0.5),
    ],
)
def test_the_difference_of_two_outputs(one: Any, other: Any, difference: float) -> None:
    assert gates.largest_difference(np.asarray(one), np.asarray(other)) == difference
