"""A module that was trained elsewhere, and rows: what is evaluated on them, and what of them is refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from small_modules import Does
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import shipline as sl
from shipline.artifact import Artifact
from shipline.errors import ConfigError, GateError, ShiplineError, SignatureError
from shipline.export import Source, on_rows, source_of
from shipline.export.examples import Examples
from shipline.export.source import digest_of
from shipline.export.trained import look_at
from shipline.processing import Columns, Processing

LAX: dict[str, Any] = {"min_speedup": 0.0}


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


X, Y = digits()[0][:300], digits()[1][:300]


@functools.cache
def classifier() -> nn.Module:
    """Trained by a loop of the user's own, and left in training mode."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 10))
        optimizer, (x, y) = torch.optim.AdamW(net.parameters(), lr=1e-2), digits()
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(net(x[300:]), y[300:]).backward()
            optimizer.step()
    return net


def accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs.argmax(1) == targets).float().mean()


class Masked(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor, scale: torch.Tensor | None = None) -> Any:
        return (x * mask).sum(1) if scale is None else (x * mask).sum(1) * scale


# ---- the whole export ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return sl.export(classifier(), rows=X, to=str(tmp_path_factory.mktemp("models") / "plain"))


def test_without_a_metric_the_answers_of_the_module_itself_count(artifact: Artifact) -> None:
    manifest = artifact.manifest
    assert str(manifest.signature) == "input: float32[-1, 64] -> output: float32[-1, 10]"
    assert manifest.metrics == {"fidelity": pytest.approx(1, abs=1e-9)}
    assert {"parity", "batch_invariance", "metric"} <= {verdict.gate for verdict in manifest.verdicts}
    assert "rebuilt" not in {verdict.gate for verdict in manifest.verdicts}
    assert manifest.lineage.weights_digest == digest_of(classifier().state_dict())
    assert manifest.lineage.config == {"module": "torch.nn.modules.container.Sequential"}
    assert "torch" in manifest.lineage.packages
    assert manifest.lineage.checkpoint is None


def test_the_users_object_stays_as_it_is(tmp_path: Path) -> None:
    net = copy.deepcopy(classifier()).train()
    before = copy.deepcopy(net.state_dict())
    sl.export(net, rows=X[:40], to=str(tmp_path / "m"))
    assert all(part.training for part in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert "forward" not in net.__dict__


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_what_is_put_around_a_module_is_taken_off(wrap: Callable[[nn.Module], nn.Module]) -> None:
    found = source_of(wrap(classifier())).build()
    assert type(found) is nn.Sequential
    assert digest_of(found.state_dict()) == digest_of(classifier().state_dict())


def test_a_metric_and_targets(tmp_path: Path) -> None:
    metrics = {"accuracy": accuracy, "loss": F.cross_entropy}
    found = sl.export(classifier(), rows=(X, Y), metric=metrics, mode="max", to=str(tmp_path / "m")).manifest
    with torch.no_grad():
        answers = copy.deepcopy(classifier()).eval()(X)
    assert found.metrics["accuracy"] == pytest.approx(float(accuracy(answers, Y)))
    assert found.metrics["accuracy"] > 0.85
    assert found.metrics["loss"] == pytest.approx(float(F.cross_entropy(answers, Y)), abs=1e-5)
    assert next(v for v in found.verdicts if v.gate == "metric").message.startswith("accuracy is")


@pytest.mark.parametrize(("mode", "passes"), [("min", False), ("max", True)])
def test_a_metric_of_which_less_is_better(mode: Any, passes: bool, tmp_path: Path) -> None:
    """A metric that grows when it is asked for again: worse, where a low one is good."""
    values = iter([1.0, 2.0])
    options: dict[str, Any] = {"rows": (X, Y), "metric": lambda *_: next(values), "mode": mode}
    if passes:
        assert sl.export(classifier(), to=str(tmp_path / "m"), **options).manifest.metrics == {"metric": 2.0}
    else:
        with pytest.raises(GateError, match=r"metric is 2, the trained module's is 1: worse by 1; 0.005 is allowed"):
            sl.export(classifier(), to=str(tmp_path / "m"), **options)


def test_a_metric_that_is_no_number_of_the_module_itself() -> None:
    rows = on_rows(Source.of_module(classifier()), (X, Y), metric=lambda *_: float("nan"), mode="max")
    with pytest.raises(GateError, match="The trained module's own 'metric' is nan over the validation rows"):
        look_at(rows, sl.Recipe())


@pytest.mark.parametrize(
    ("room", "asked"), [(1 << 20, [64, 64, 22]), (64 * 40, [64, 64, 22, 64, 22]), (0, [64, 64, 22] * 2)]
)
def test_own_answers_are_computed_once_where_there_is_room(
    room: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer to 64 rows takes 64 x 10 x 4 bytes, with or without a metric."""
    monkeypatch.setattr("shipline.export.kept.ROOM_BYTES", room)
    batches = list[int]()

    def count(x: torch.Tensor) -> torch.Tensor:
        batches.append(len(x))
        return x[:, :10]

    for metric in (None, lambda outputs, own: 1 - (outputs - own).abs().max()):
        evaluate, other = (
            on_rows(source_of(Does(count)), X[:150], metric=metric).evaluate,
            Does(lambda x: x[:, :10] * 1),
        )
        batches.clear()
        found = [evaluate(other) for _ in range(2)]
        assert batches == asked
        assert [next(iter(each.values())) for each in found] == [1.0, 1.0]


def test_int8_is_calibrated_on_rows_of_its_own(tmp_path: Path) -> None:
    """On rows that are all alike, or all 0, the scales are wrong, which shows."""
    recipe = sl.Recipe(precision="int8", max_metric_drop=0.02, **LAX)
    options: dict[str, Any] = {"recipe": recipe, "rows": X, "to": str(tmp_path / "m")}
    found = sl.export(classifier(), **options, calibration=digits()[0][300:]).manifest.metrics["fidelity"]
    assert 0.98 <= found < 1
    with pytest.raises(GateError, match="metric: fidelity is"):
        sl.export(classifier(), **options, calibration=torch.zeros(64, 64))
    with pytest.raises(ConfigError, match="calibration_rows=512, and there are 5: scales that are measured on fewer"):
        sl.export(classifier(), **options, calibration=X[:5])


def test_raw_rows_and_processing(tmp_path: Path) -> None:
    table = load_diabetes()
    x, y = torch.tensor(table.data, dtype=torch.float32), torch.tensor(table.target, dtype=torch.float32)
    net = nn.Linear(10, 1)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y[:, None]).solution
    net.load_state_dict({"weight": solution[:10].T, "bias": solution[10]})
    raw = [dict(zip(table.feature_names, map(float, row), strict=True)) for row in table.data]
    processing = Processing(before=[Columns(numeric=tuple(table.feature_names))])
    found = sl.export(
        net, rows=(raw, y), processing=processing, metric=lambda out, y: F.l1_loss(out[:, 0], y), mode="min",
        to=str(tmp_path / "m"),
    ).manifest  # fmt: skip
    assert 40 < found.metrics["metric"] < 46  # as least squares on this table is known to do
    assert next(v for v in found.verdicts if v.gate == "preprocessing").passed
    frame = load_diabetes(as_frame=True).data
    assert Examples(frame, net.forward, labelled=False, processing=processing).raw == raw
    bad = [*raw[:3], {"age": 1.0}]
    with pytest.raises(ConfigError, match="Raw row 3 cannot be prepared: Missing column 'sex'"):
        sl.export(net, rows=bad, processing=processing, to=str(tmp_path / "m"))


def test_rows_in_place_of_a_runs_own_data(trained: Any, tmp_path: Path) -> None:
    found = sl.export(trained, rows=X, to=str(tmp_path / "m")).manifest
    assert found.metrics.keys() == {"fidelity"}
    assert found.lineage.checkpoint_digest == trained.checkpoint.manifest.digest


# ---- what rows may be ------------------------------------------------------------------------------------------------

MASK = (torch.arange(300)[:, None] % 7 != torch.arange(64)[None] % 7).float()
TEN = torch.utils.data.Subset(TensorDataset(X, MASK, Y), range(150))


@pytest.mark.parametrize(
    ("rows", "count", "labelled"),
    [
        ((X, MASK), 300, False),
        ([(x, m) for x, m in zip(X, MASK, strict=True)], 300, False),
        ((X.numpy(), MASK.numpy(), Y.numpy()), 300, True),
        ({"x": X, "mask": MASK.numpy()}, 300, False),
        ({"x": pd.DataFrame(X.numpy()), "mask": MASK}, 300, False),
        ((pd.DataFrame(X.numpy()), MASK, pd.Series(Y.numpy())), 300, True),
        ({"x": X, "mask": MASK, "label": Y}, 300, True),
        (TensorDataset(X, MASK), 300, False),
        (TEN, 150, True),
        (DataLoader(TEN, 32, shuffle=True), 150, True),
        ([{"x": x, "mask": m, "y": y} for x, m, y in zip(X.numpy(), MASK, Y, strict=True)], 300, True),
    ],
)
def test_the_forms_of_rows(rows: Any, count: int, labelled: bool) -> None:
    examples = Examples(rows, Masked().forward, labelled=labelled)
    for _ in range(2):
        batches = list(examples.batches())
        x, mask = (torch.cat([batch[name] for batch, _ in batches]) for name in ("x", "mask"))
        assert all(batch.keys() == {"x", "mask"} for batch, _ in batches)
        order = torch.cdist(x, X).argmin(1)
        assert order.sort().values.tolist() == list(range(count))
        assert torch.equal(mask, MASK[order])
        if labelled:
            assert torch.equal(torch.cat([target for _, target in batches]), Y[order])
        else:
            assert all(target is None for _, target in batches)


def test_a_loader_that_shuffles_gives_the_same_order_each_time_and_draws_nothing() -> None:
    state = torch.random.get_rng_state()
    examples = Examples(DataLoader(TensorDataset(X), 300, shuffle=True), nn.Identity().forward, labelled=False)
    (first, _), (again, _) = (next(iter(examples.batches())) for _ in range(2))
    assert torch.equal(first["input"], again["input"])
    assert not torch.equal(first["input"], X)
    assert torch.equal(torch.random.get_rng_state(), state)


def nothing(x: torch.Tensor) -> torch.Tensor:
    return x


@pytest.mark.parametrize(
    ("module", "rows", "options", "said"),
    [
        (nn.Identity(), iter([X]), {}, "rows is a list_iterator, which can be read once; give a list"),
        (nn.Identity(), 3, {}, "rows is a int; give arrays by name, a Dataset or a DataLoader"),
        (nn.Identity(), "rows.csv", {}, "rows is a str; give arrays by name"),
        (nn.Identity(), X[:0], {}, "rows has 0 rows; a proof needs at least 2"),
        (nn.Identity(), X[:1], {}, "rows has 1 rows; a proof needs at least 2, and hundreds prove more"),
        (nn.Identity(), [], {}, "rows has 0 rows"),
        (nn.Identity(), (X, Y[:7]), {}, r"The arrays of rows have \[7, 300\] rows"),
        (nn.Identity(), (X, Y, Y), {}, "A row has 3 arrays; forward takes input, and one more may be the targets"),
        (nn.Identity(), [X[0], X[0, :9]], {}, "The rows cannot be read: .* All rows of an input have one shape"),
        (Masked(), (X, MASK, Y), {}, r"is the last an input, or the targets\? Name them: rows={'x': \.\.\.}"),
        (Masked(), {"x": X, "mas": MASK}, {}, r"rows has 'mas', which forward does not take. Did you mean 'mask'\?"),
        (Masked(), {"x": X, "a": Y, "b": Y}, {"metric": accuracy}, "rows has 'a', 'b', which forward does not take"),
        (Masked(), {"x": X}, {}, r"forward of Masked cannot take the rows \(x: torch.float32 \[64, 64\]\): TypeError"),
        (classifier(), X.double(), {}, r"float64 \[64, 64\]\): .* The weights are torch.float32: give input"),
        (classifier(), X.long(), {}, r"int64 \[64, 64\]\): .* The weights are torch.float32: give input in that"),
        (classifier(), pd.DataFrame({"a": ["b"]}), {}, r"a ndarray, which is no array of numbers: .* bool\.$"),
        (Does(lambda x: {"loss": None}), X, {}, "forward gives no tensor; an exported graph needs an output"),
        (classifier(), X, {"metric": "accuracy"}, "metric is 'accuracy'; give a function of outputs and targets"),
        (classifier(), (X, Y), {"metric": accuracy}, "Is a high 'accuracy' good, or a low one"),
        (classifier(), (X, Y), {"metric": lambda out, y: out}, "The metric 'metric' gives no number for all outputs"),
        (Does(lambda *x: x[0]), {"y": X}, {}, "rows has 'y', which forward does not take"),
        (nn.Linear, X, {}, "What is to be exported is a type: give what Trainer.fit returned"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used(module: Any, rows: Any, options: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ShiplineError, match=said) as caught:
        sl.export(module, rows=rows, to=str(tmp_path / "m"), **options)
    assert isinstance(caught.value, ConfigError | SignatureError)
    assert not (tmp_path / "m").exists()


def test_without_rows_nothing_is_proved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"proved on real rows: give data=YourDataModule\(\), or rows=\.\.\."):
        sl.export(classifier(), to=str(tmp_path / "m"))


# ---- what a module may not do ----------------------------------------------------------------------------------------


class Counts(nn.Module):
    """Counts how often it was asked, in a buffer or in an attribute."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.asked = how, 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "in place":
            self.count += 1
        elif self.how == "anew":
            self.count = self.count + 1
        else:
            self.asked += 1
        return x + self.count + self.asked


@pytest.mark.parametrize(
    ("module", "error", "said"),
    [
        (Counts("in place"), SignatureError, "forward of Counts changes 'count' in evaluation mode"),
        (Counts("anew"), SignatureError, "forward of Counts changes 'count' in evaluation mode"),
        (Counts("attribute"), GateError, "Counts answers the same rows otherwise when it is asked again: 'output'"),
        (Does(lambda x: x + torch.rand(())), GateError, "Its forward draws random numbers or keeps something"),
        (
            Does(lambda x: x / 0),
            GateError,
            "own output 'output' is NaN or infinite in 300 of 300 validation rows, first in row 0",
        ),
        (
            Does(lambda x: x / (x != X[280]).any(1, keepdim=True)),
            GateError,
            "in 1 of 300 validation rows, first in row 280",
        ),
        (Does(lambda x: x.sum()), SignatureError, "no tensor with a batch dimension"),
        (Does(lambda x: (x, x[:, :0])), SignatureError, r"output 1 of forward has the shape \[64, 0\], which holds no"),
        (Does(lambda x: x.bfloat16()), SignatureError, "bfloat16, which a request cannot carry: convert it in forward"),
    ],
)
def test_what_forward_may_not_do(module: nn.Module, error: type[ShiplineError], said: str) -> None:
    with pytest.raises(error, match=said):
        look_at(on_rows(Source.of_module(module), X), sl.Recipe())


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_a_low_fidelity_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of another module, as a wrong export would be."""
    monkeypatch.setattr(
        "shipline.export.convert.onnx.torch.onnx.export",
        functools.partial(_export_of, copy.deepcopy(classifier()), torch.onnx.export),
    )
    with pytest.raises(GateError, match=r"metric: fidelity is 0\.\d+, the trained module's is 1: worse by"):
        sl.export(classifier(), sl.Recipe(tolerance=1.0), rows=X, to=str(tmp_path / "m"))


def _export_of(module: Any, export: Callable[..., Any], _: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        module[3].weight *= 0.7
    return export(module.eval(), *args, **kwargs)


def test_targets_may_be_anything_a_metric_takes() -> None:
    words = [f"digit {int(y)}" for y in Y]
    rows = [(x, word) for x, word in zip(X, words, strict=True)]

    def right(outputs: torch.Tensor, targets: list[str]) -> float:
        return float(np.mean([f"digit {i}" == word for i, word in zip(outputs.argmax(1), targets, strict=True)]))

    source = on_rows(Source.of_module(classifier()), rows, metric=right, mode="max")
    assert source.evaluate(source.build())["right"] > 0.85
