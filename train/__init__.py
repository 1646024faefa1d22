"""Training: a checkpoint from a module and data."""

if __name__ != "shipline.train":  # a bare `import train` from the repository's root would make a second copy of it all
    raise ImportError("This package is shipline.train; its folder is not meant to be imported as 'train'.")

from shipline.train import accelerators as accelerators
from shipline.train import callbacks as callbacks
from shipline.train import loggers as loggers
from shipline.train import profilers as profilers
from shipline.train import strategies as strategies
from shipline.train import utilities as utilities
from shipline.train.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    OnlineEvaluator,
    ProgressBar,
    QuantizationAwareTraining,
    RichModelSummary,
    RichProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from shipline.train.data import DataModule
from shipline.train.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from shipline.train.module import Module
from shipline.train.run import Run
from shipline.train.seed import seed_everything
from shipline.train.trainer import Trainer
from shipline.train.tuner import Tuner

# A Lightning script runs with the import changed, `import shipline.train as pl`: docs/from_lightning.md.
LightningModule = Module
LightningDataModule = DataModule

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "CSVLogger",
    "Callback",
    "DataModule",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "LightningDataModule",
    "LightningModule",
    "Logger",
    "MLFlowLogger",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "Module",
    "OnExceptionCheckpoint",
    "OnlineEvaluator",
    "ProgressBar",
    "QuantizationAwareTraining",
    "RichModelSummary",
    "RichProgressBar",
    "Run",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "TensorBoardLogger",
    "ThroughputMonitor",
    "Timer",
    "Trainer",
    "Tuner",
    "WandbLogger",
    "WeightAveraging",
    "seed_everything",
]
