"""What a prediction writer is given, compared with Lightning's; on one worker and with data workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytorch_lightning import callbacks as lightning
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, SubsetRandomSampler
from training import bare_trainer, rows
from twins import Digits, calm, loader, twins

from shipline.errors import ConfigError
from shipline.train import BasePredictionWriter, Trainer


def keeping(base: Any) -> Any:
    """A writer that keeps what it is given."""

    class Keeps(base):  # type: ignore[misc]
        def __init__(self, interval: str) -> None:
            super().__init__(interval)
            self.batches: list[Any] = []
            self.epochs: list[Any] = []

        def write_on_batch_end(
            self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, batch: Any, *where: int
        ) -> None:
            self.batches.append((prediction.tolist(), batch_indices, batch[0].tolist(), *where))

        def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
            self.epochs.append(([_plain(each) for each in predictions], batch_indices))

    return Keeps


def _plain(predictions: Any) -> Any:
    return predictions.tolist() if isinstance(predictions, torch.Tensor) else [each.tolist() for each in predictions]


def own_order(count: int = 20) -> DataLoader[Any]:
    batches = BatchSampler(SequentialSampler(range(count)), 8, drop_last=True)  # type: ignore[arg-type]
    return DataLoader(rows(0, count), batch_sampler=batches)


@pytest.mark.filterwarnings("ignore")  # Lightning's, of shuffled rows
@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
@pytest.mark.parametrize(
    ("loaders", "options"),
    [
        (loader(0, 20, 8), {}),
        ([loader(0, 20, 8), loader(40, 5, 2)], {}),
        (own_order(), {"limit_predict_batches": 1}),
        (DataLoader(rows(0, 30), 8, num_workers=2), {}),
    ],
)
def test_what_is_written_is_what_lightning_gives(loaders: Any, options: dict[str, Any], interval: str) -> None:
    pair = twins(keeping(BasePredictionWriter)(interval), keeping(lightning.BasePredictionWriter)(interval), **options)
    for twin in pair:
        with calm():
            assert not twin.trainer.predict(Digits(), loaders, return_predictions=False)
    ours, theirs = (twin.callback for twin in pair)
    assert (ours.batches, ours.epochs) == (theirs.batches, theirs.epochs)
    assert bool(ours.batches) == (interval != "epoch")
    assert bool(ours.epochs) == (interval != "batch")


def predicted(loaders: Any, **options: Any) -> list[Any]:
    """The rows' indices of each batch, which the predictions tell of, as a writer is given them."""

    class Pixels(Digits):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return batch[0][:, 20]

    writer = keeping(BasePredictionWriter)("batch")
    bare_trainer(callbacks=writer, **options).predict(Pixels(), loaders)
    pixels = rows(0, 100).tensors[0][:, 20]
    for prediction, indices, *_ in writer.batches:
        assert indices is None or torch.equal(torch.tensor(prediction), pixels[torch.tensor(indices)])
    return [indices for _, indices, *_ in writer.batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_indices_are_those_of_the_rows_in_any_order(workers: int) -> None:
    """Also while data workers load ahead."""
    torch.manual_seed(3)
    shuffled = DataLoader(rows(0, 100), 8, shuffle=True, num_workers=workers)
    found = predicted(shuffled)
    assert sorted(index for batch in found for index in batch) == list(range(100))
    assert found[0] != list(range(8))
    some = DataLoader(rows(0, 100), 8, sampler=SubsetRandomSampler(range(0, 100, 3)), num_workers=workers)
    assert sorted(index for batch in predicted(some) for index in batch) == list(range(0, 100, 3))
    assert predicted(DataLoader(rows(0, 100), 8, num_workers=workers), limit_predict_batches=2)[1] == list(range(8, 16))


def test_rows_without_batches_have_an_index_each() -> None:
    class Row(Digits):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return batch[0][20]

    writer = keeping(BasePredictionWriter)("batch")
    bare_trainer(callbacks=writer).predict(Row(), DataLoader(rows(0, 3), batch_size=None))
    assert [indices for _, indices, *_ in writer.batches] == [[0], [1], [2]]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(rows(0, 10))


class Batches:
    def __iter__(self) -> Iterator[Any]:
        return iter(loader(0, 24, 8))


@pytest.mark.parametrize(
    "loaders",
    [DataLoader(Stream(), 4), Batches(), DataLoader(rows(0, 24), 8, num_workers=2, in_order=False)],
)
def test_where_nobody_knows_the_indices_there_are_none(loaders: Any) -> None:
    assert predicted([loaders]) == [None] * 3


def test_nothing_is_kept_of_a_prediction_that_is_over() -> None:
    writer = keeping(BasePredictionWriter)("epoch")
    trainer = bare_trainer(callbacks=writer)
    for count in (1, 2):
        trainer.predict(Digits(), loader(0, 20, 8), return_predictions=False)
        assert len(writer.epochs) == count
        assert writer._predictions == writer._indices == []
    assert writer.epochs[0] == writer.epochs[1]


def test_predictions_are_returned_beside_what_is_written() -> None:
    writer = keeping(BasePredictionWriter)("batch_and_epoch")
    found = bare_trainer(callbacks=writer).predict(Digits(), loader(0, 20, 8))
    assert [each.tolist() for each in found] == writer.epochs[0][0]


def test_a_writer_that_writes_nothing_says_so() -> None:
    with pytest.raises(ConfigError, match="BasePredictionWriter has write_interval='step'; choose one of batch, epoch"):
        BasePredictionWriter("step")  # type: ignore[arg-type]
    trainer: Trainer
    for interval, name in (("batch", "write_on_batch_end"), ("epoch", "write_on_epoch_end")):
        trainer = bare_trainer(callbacks=BasePredictionWriter(interval))  # type: ignore[arg-type]
        with pytest.raises(NotImplementedError, match=f"BasePredictionWriter has no {name}: define it"):
            trainer.predict(Digits(), loader())
