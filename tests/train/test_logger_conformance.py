"""Every logger, read back with the reader of its library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from logged import CsvReader, MLflowReader, TensorBoardReader, WandbReader
from logger_conformance import LoggerConformance, made_csv

from shipline.train import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger


@pytest.fixture
def copies(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    request.instance.copies = tmp_path / "copies"


class TestCsv(CsvReader, LoggerConformance):
    registered = "csv"

    def make(self, **options: Any) -> Logger:
        return made_csv(**options)


@pytest.mark.usefixtures("copies")
class TestTensorBoard(TensorBoardReader, LoggerConformance):
    registered = "tensorboard"
    exact = False

    def make(self, **options: Any) -> Logger:
        return TensorBoardLogger(**options)


@pytest.mark.usefixtures("copies")
class TestMLflow(MLflowReader, LoggerConformance):
    registered = "mlflow"

    def make(self, **options: Any) -> Logger:
        return MLFlowLogger(**options)


@pytest.mark.usefixtures("wandb_offline")
class TestWandb(WandbReader, LoggerConformance):
    registered = "wandb"

    def make(self, **options: Any) -> Logger:
        return WandbLogger(**options)
