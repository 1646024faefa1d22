"""Training: a checkpoint from a module and data."""

if __name__ != "shipline.train":  # a bare `import train` from the repository's root would make a second copy of it all
    raise ImportError("This package is shipline.train; its folder is not meant to be imported as 'train'.")

from shipline.train.callbacks import Callback, EarlyStopping, ModelCheckpoint, ModelSummary, ProgressBar, Timer
from shipline.train.data import DataModule
from shipline.train.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from shipline.train.module import Module
from shipline.train.run import Run
from shipline.train.seed import seed_everything
from shipline.train.trainer import Trainer

__all__ = [
    "CSVLogger",
    "Callback",
    "DataModule",
    "EarlyStopping",
    "Logger",
    "MLFlowLogger",
    "ModelCheckpoint",
    "ModelSummary",
    "Module",
    "ProgressBar",
    "Run",
    "TensorBoardLogger",
    "Timer",
    "Trainer",
    "WandbLogger",
    "seed_everything",
]
