"""Training: a checkpoint from a module and data."""

if __name__ != "shipline.train":  # a bare `import train` from the repository's root would make a second copy of it all
    raise ImportError("This package is shipline.train; its folder is not meant to be imported as 'train'.")

from shipline.train.callbacks import (
    BasePredictionWriter,
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    OnExceptionCheckpoint,
    ProgressBar,
    RichModelSummary,
    RichProgressBar,
    SpikeDetection,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
)
from shipline.train.data import DataModule
from shipline.train.loggers import CSVLogger, Logger
from shipline.train.module import Module
from shipline.train.run import Run
from shipline.train.seed import seed_everything
from shipline.train.trainer import Trainer

__all__ = [
    "BasePredictionWriter",
    "CSVLogger",
    "Callback",
    "DataModule",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateMonitor",
    "Logger",
    "ModelCheckpoint",
    "ModelSummary",
    "Module",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "Run",
    "SpikeDetection",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "Trainer",
    "seed_everything",
]
