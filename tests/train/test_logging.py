"""`self.log` in all its options, beside Lightning's, and over a resume in the middle of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from beside_lightning import METRICS, plain, side_by_side
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from training import Mlp, metric_rows, new_trainer, rows, train_loader

import shipline as sl
from shipline.errors import TrainingError

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's


def logs_all(base: Any) -> Any:  # noqa: C901
    """A module that logs with every option that both know; it notes what can be seen of it, and where."""

    class LogsAll(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)
            self.train_acc = MulticlassAccuracy(10, average="micro")
            self.of_loader = nn.ModuleList([MulticlassAccuracy(10), MulticlassAccuracy(10)])
            scores = {"acc": MulticlassAccuracy(10), "f1": MulticlassF1Score(10)}
            self.scores = torchmetrics.MetricCollection(scores, prefix="some_")
            self.parts = nn.ModuleDict({"mean": torchmetrics.MeanMetric()})
            self.seen: list[tuple[str, dict[str, Any]]] = []

        def see(self, where: str, *kinds: str) -> None:
            self.seen.append((where, {kind: dict(getattr(self.trainer, kind)) for kind in kinds}))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            image, digit = batch
            out = self.layer(image)
            loss = F.cross_entropy(out, digit)
            self.train_acc(out, digit)
            self.log("train_acc", self.train_acc, on_step=True, on_epoch=True, prog_bar=True)
            self.parts["mean"].update(loss)
            self.log("mean", self.parts["mean"], on_step=False, on_epoch=True, metric_attribute="parts.mean")
            self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(image), sync_dist=True)
            self.log("first", loss, rank_zero_only=True, prog_bar=True)
            self.log("weighted", loss, on_step=False, on_epoch=True, batch_size=1 + batch_idx)
            unlogged = {"a": loss.detach() * 2, "b": float(batch_idx)}
            self.log_dict(unlogged, on_step=True, on_epoch=True, reduce_fx="max", logger=False)
            return loss

        def on_train_batch_end(self, *_arguments: Any) -> None:
            self.see("batch", "callback_metrics", "progress_bar_metrics")

        def on_train_epoch_end(self) -> None:
            self.see("epoch", "callback_metrics")
            self.log("again", self.train_acc.compute())  # it is not reset before its epoch is over

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            image, digit = batch
            out = self.layer(image)
            if dataloader_idx == 1:
                self.scores.update(out, digit)
                self.log_dict(self.scores, prog_bar=True, add_dataloader_idx=False)
            self.of_loader[dataloader_idx](out, digit)
            self.log("acc", self.of_loader[dataloader_idx], on_step=True, on_epoch=True, prog_bar=True)
            self.log("index", float(dataloader_idx))
            self.log(f"own_{dataloader_idx}", F.cross_entropy(out, digit), add_dataloader_idx=False)

        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.see("validation", "callback_metrics")
            self.log("f1_again", self.scores["f1"].compute(), prog_bar=True)
            self.log_dict({"x": torch.tensor(1), "y": 2})

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return LogsAll()


def validation() -> list[Any]:
    return [DataLoader(rows(1400, 1450), 32), DataLoader(rows(1450, 1490), 32)]


def without_steps(metrics: dict[str, Any]) -> dict[str, Any]:
    """Lightning keeps what validation logs per step from callbacks; here they find that too."""
    return {name: value for name, value in metrics.items() if not name.startswith("acc_step/")}


@pytest.fixture(scope="module")
def modules() -> list[Any]:
    def run(trainer: Any, module: Any) -> None:
        trainer.fit(module, DataLoader(rows(0, 100), 32), validation())
        module.fitted = {kind: dict(getattr(trainer, kind)) for kind in METRICS}
        module.results = trainer.validate(module, validation(), verbose=False)
        module.validated = {kind: dict(getattr(trainer, kind)) for kind in METRICS}

    return side_by_side(logs_all, run, max_epochs=2, log_every_n_steps=2, num_sanity_val_steps=1)


@pytest.mark.parametrize("after", ["fitted", "validated"])
@pytest.mark.parametrize("kind", METRICS)
def test_every_option_gives_the_names_and_values_of_lightning(modules: list[Any], after: str, kind: str) -> None:
    theirs, ours = (getattr(module, after)[kind] for module in modules)
    assert plain(without_steps(ours) if kind == "callback_metrics" else ours) == plain(theirs)


def test_hooks_see_in_every_epoch_what_they_see_in_lightning(modules: list[Any]) -> None:
    """Of a metric that is logged per step and epoch the step's value too has its plain name, while the epoch runs."""
    theirs, ours = (module.seen for module in modules)
    assert [where for where, _ in ours] == [where for where, _ in theirs]
    for (where, own), (_, expected) in zip(ours, theirs, strict=True):
        for kind, values in expected.items():
            found = without_steps(own[kind]) if kind == "callback_metrics" else own[kind]
            assert plain(found) == plain(values), (where, kind)


def test_each_loader_has_its_results(modules: list[Any]) -> None:
    """Those of Lightning, and both names of what is logged per step and epoch."""
    theirs, ours = (module.results for module in modules)
    for index, (own, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert own.pop(f"acc/dataloader_idx_{index}") == own[f"acc_epoch/dataloader_idx_{index}"]
        assert plain(own) == plain(expected)


# ---- over a resume ---------------------------------------------------------------------------------------------------


def test_what_is_logged_goes_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    """Objects, collections and numbers of all reductions: in the end all is as if the run had never stopped."""

    def fit(name: str, ckpt_path: str | None = None) -> Any:
        torch.manual_seed(0)
        keep = sl.ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)
        trainer = new_trainer(tmp_path, name=name, max_epochs=2, log_every_n_steps=2, callbacks=keep)
        run = trainer.fit(logs_all(sl.Module), train_loader(130), validation(), ckpt_path=ckpt_path)
        return trainer, run

    whole, run = fit("whole")
    resumed, other = fit("resumed", f"{run.url}/checkpoints/epoch=1-step=6")
    assert resumed.global_step == whole.global_step == 10
    for kind in METRICS:
        assert getattr(resumed, kind) == getattr(whole, kind), kind
    expected, found = by_step(str(run.url)), by_step(str(other.url))
    assert sorted(found) == ["4", "5", "6", "7", "9"]  # 7 and 9 of training, the others of validation, by its batches
    for step, row in found.items():
        assert row.items() <= expected[step].items()


def by_step(run: str) -> dict[str, dict[str, str]]:
    """All that was logged at each step."""
    merged: dict[str, dict[str, str]] = {}
    for row in metric_rows(run):
        merged.setdefault(row["step"], {}).update(row)
    return merged


def test_a_metric_that_is_no_attribute_cannot_go_on(tmp_path: Path) -> None:
    """Nothing of it is in the checkpoint; without a resume it is as good as any."""

    class Hides(Mlp):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [torchmetrics.MeanMetric()]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.hidden[0].update(loss)
            self.log("hidden", self.hidden[0], on_step=False, on_epoch=True)
            return loss

    keep = sl.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
    trainer = new_trainer(tmp_path, max_epochs=1, callbacks=keep)
    run = trainer.fit(Hides(), train_loader(64))
    assert "hidden" in trainer.callback_metrics
    with pytest.raises(TrainingError, match=r"log\('hidden'\) has a metric that is no attribute of the module"):
        new_trainer(tmp_path, max_epochs=1).fit(
            Hides(), train_loader(64), ckpt_path=f"{run.url}/checkpoints/epoch=0-step=1"
        )
