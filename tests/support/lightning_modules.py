"""Lightning modules as others wrote them, unchanged: Lightning's own demos, and those of packages on the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from neuralforecast.utils import AirPassengersDF, AirPassengersPanel
from torch.utils.data import DataLoader, Dataset

Made = tuple[Any, dict[str, Any]]
"""A module, and the arguments of `fit` beside it."""

#: Monthly passengers of 1949 to 1960: the series that every forecasting package learns.
PASSENGERS: pd.DataFrame = AirPassengersDF


def boring() -> Made:
    from pytorch_lightning.demos.boring_classes import BoringModel

    return BoringModel(), {}


def boring_datamodule() -> Made:
    from pytorch_lightning.demos.boring_classes import BoringDataModule, BoringModel

    return BoringModel(), {"datamodule": BoringDataModule()}


def boring_manual() -> Made:
    from pytorch_lightning.demos.boring_classes import ManualOptimBoringModel

    return ManualOptimBoringModel(), {}


def transformer() -> Made:
    """Lightning's language model, on the words of Lightning's own licence instead of a download."""
    from importlib.metadata import distribution

    from pytorch_lightning.demos.transformer import LightningTransformer

    files = distribution("pytorch_lightning").files or ()
    licence = next(file for file in files if file.name.startswith("LICENSE"))
    text = licence.read_text().split()[:500]
    words = {word: number for number, word in enumerate(sorted(set(text)))}
    module = LightningTransformer(vocab_size=len(words))
    module.prepare_data = lambda: None
    loader = DataLoader(_NextWords(torch.tensor([words[word] for word in text])), batch_size=4, shuffle=True)
    return module, {"train_dataloaders": loader}


class _NextWords(Dataset[Any]):
    def __init__(self, words: torch.Tensor) -> None:
        self.words = words

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        start = index * 35
        return self.words[start : start + 35], self.words[start + 1 : start + 36]


def temporal_fusion_transformer() -> Made:
    from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer

    return _pytorch_forecasting(TemporalFusionTransformer, hidden_size=8, loss=QuantileLoss(), log_interval=5)


def recurrent_forecast() -> Made:
    from pytorch_forecasting import DeepAR

    return _pytorch_forecasting(DeepAR, hidden_size=8)


def _pytorch_forecasting(cls: Any, **options: Any) -> Made:
    from pytorch_forecasting import GroupNormalizer, TimeSeriesDataSet

    table = pd.DataFrame({"month": range(len(PASSENGERS)), "y": PASSENGERS["y"].astype("float32"), "series": "air"})
    dataset = TimeSeriesDataSet(
        table,
        time_idx="month",
        target="y",
        group_ids=["series"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["y"],
        static_categoricals=["series"],
        target_normalizer=GroupNormalizer(groups=["series"]),
    )
    validation = TimeSeriesDataSet.from_dataset(dataset, table, predict=True, stop_randomization=True)
    return cls.from_dataset(dataset, learning_rate=0.03, **options), {
        "train_dataloaders": dataset.to_dataloader(train=True, batch_size=16, num_workers=0),
        "val_dataloaders": validation.to_dataloader(train=False, batch_size=16, num_workers=0),
    }


def feed_forward_forecast() -> Made:
    from gluonts.torch.model.simple_feedforward import SimpleFeedForwardEstimator

    return _gluonts(SimpleFeedForwardEstimator, {})


def autoregressive_forecast() -> Made:
    from gluonts.torch.model.deepar import DeepAREstimator

    return _gluonts(DeepAREstimator, {"freq": "M"})


def _gluonts(cls: Any, options: dict[str, Any]) -> Made:
    from gluonts.dataset.common import ListDataset
    from gluonts.itertools import Cached

    data = ListDataset([{"start": "1949-01", "target": PASSENGERS["y"].to_numpy()}], freq="M")
    estimator = cls(prediction_length=5, context_length=10, batch_size=8, num_batches_per_epoch=6, **options)
    rows = Cached(estimator.create_transformation().apply(data, is_train=True))
    module = estimator.create_lightning_module()
    return module, {"train_dataloaders": estimator.create_training_data_loader(rows, module)}


def neural_hierarchical_forecast() -> Made:
    from neuralforecast.models import NHITS

    return _neuralforecast(NHITS)


def recurrent_neural_forecast() -> Made:
    from neuralforecast.models import LSTM

    return _neuralforecast(LSTM)


def _neuralforecast(cls: Any) -> Made:
    from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

    dataset, *_ = TimeSeriesDataset.from_df(AirPassengersPanel[["unique_id", "ds", "y"]])
    module = cls(h=4, input_size=12, max_steps=10, accelerator="cpu", early_stop_patience_steps=-1, random_seed=1)
    module.val_size = module.test_size = 0
    data = TimeSeriesDataModule(
        dataset=dataset, batch_size=1, valid_batch_size=2, num_workers=0, drop_last=False, shuffle_train=True
    )
    return module, {"datamodule": data}


MODULES: list[Callable[[], Made]] = [
    boring, boring_datamodule, boring_manual, transformer, temporal_fusion_transformer, recurrent_forecast,
    feed_forward_forecast, autoregressive_forecast, neural_hierarchical_forecast, recurrent_neural_forecast,
]  # fmt: skip
