"""Where metrics go."""

from shipline.train.loggers.csv_logs import CSVLogger
from shipline.train.loggers.logger import Logger
from shipline.train.loggers.mlflow import MLFlowLogger
from shipline.train.loggers.tensorboard import TensorBoardLogger
from shipline.train.loggers.wandb import WandbLogger

__all__ = ["CSVLogger", "Logger", "MLFlowLogger", "TensorBoardLogger", "WandbLogger"]
