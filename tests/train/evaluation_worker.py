"""Validates and tests datasets of many sizes, as one of several workers or, for the comparison, alone.

    python evaluation_worker.py RANK WORLD_SIZE DIRECTORY

Prints as JSON the metrics that this worker got, every bit of them.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric, MetricCollection, classification
from training import Mlp, bare_trainer, rows

from shipline.train import loops
from shipline.train.data import Loaders
from shipline.train.strategies import Ddp, Strategy

SIZES = (1, 2, 3, 7, 8, 37, 250)


class Measured(Mlp):
    """Logs by every way of reducing, numbers and torchmetrics objects, those that keep lists included."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"num_classes": 10}
        self.accuracy = classification.MulticlassAccuracy(**options, average="micro")
        self.auroc = classification.MulticlassAUROC(**options)  # keeps every row
        self.loss_of_rows = MeanMetric()
        self.scores = MetricCollection([classification.MulticlassF1Score(**options, average="micro")])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        image, digit = batch
        logits = self(image)
        loss = F.cross_entropy(logits, digit)
        for reduce_fx in ("mean", "sum", "min", "max"):
            self.log(f"loss_{reduce_fx}", loss, reduce_fx=reduce_fx)
        self.log("sync_dist", loss, sync_dist=True)
        self.log("weighted", loss, batch_size=3)
        if batch_idx % 3 == 1:  # on some batches only, and so perhaps on some workers only
            self.log("sometimes", loss)
        self.accuracy.update(logits, digit)
        self.auroc.update(logits.softmax(1), digit)
        self.loss_of_rows(loss, len(digit))
        self.scores.update(logits, digit)
        self.log("accuracy", self.accuracy)
        self.log("auroc", self.auroc)
        self.log("loss_of_rows", self.loss_of_rows)
        self.log_dict(self.scores)

    def on_validation_epoch_end(self) -> None:
        self.log("at_the_end", 2.5)

    test_step = validation_step


class Stream(IterableDataset[Any]):
    """Rows one after the other; nobody knows how many."""

    def __iter__(self) -> Iterator[Any]:
        return iter(rows(1400, 1437))


def evaluate(module: Any, stage: Any, loaders: Any, strategy: Strategy, **options: Any) -> list[dict[str, str]]:
    """Metrics of a stage, as hexadecimal digits."""
    data = Loaders(**{"val" if stage == "validate" else "test": loaders})
    found = loops.evaluate(bare_trainer(**options), module, data, stage, strategy)
    return [{name: float(value).hex() for name, value in metrics.items()} for metrics in found]


def everything(strategy: Strategy) -> dict[str, Any]:
    """Every case by its name."""
    torch.manual_seed(0)
    module = Measured()
    found: dict[str, Any] = {}
    for size in SIZES:
        loader = DataLoader(rows(1400, 1400 + size), 4, num_workers=2 if size == 37 else 0)
        found[f"{size} rows"] = evaluate(module, "validate", loader, strategy)
    many = [DataLoader(rows(1400, 1403), 2), DataLoader(rows(1500, 1537), 5)]
    found["several loaders"] = evaluate(module, "test", many, strategy)
    found["a stream"] = evaluate(module, "validate", DataLoader(Stream(), 4), strategy)
    found["some batches"] = evaluate(module, "test", DataLoader(rows(1400, 1500), 4), strategy, limit_test_batches=7)
    shuffled = DataLoader(rows(1400, 1430), 4, shuffle=True, generator=torch.Generator().manual_seed(3))
    found["shuffled"] = evaluate(module, "validate", shuffled, strategy)
    return found


def main(rank: int, world_size: int, directory: str) -> None:
    torch.set_num_threads(1)
    if world_size == 1:
        print(json.dumps(everything(Strategy())))
        return
    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=world_size)
    try:
        print(json.dumps(everything(Ddp())))
    finally:
        gc.collect()  # what still holds the group would otherwise end its threads when nobody can any more
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
