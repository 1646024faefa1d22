from . import (
    accelerators as accelerators,
    callbacks as callbacks,
    loggers as loggers,
    profilers as profilers,
    strategies as strategies,
    utilities as utilities,
)
from .callbacks import (
    BackboneFinetuning as BackboneFinetuning,
    BaseFinetuning as BaseFinetuning,
    BasePredictionWriter as BasePredictionWriter,
    BatchSizeFinder as BatchSizeFinder,
    Callback as Callback,
    DeviceStatsMonitor as DeviceStatsMonitor,
    EarlyStopping as EarlyStopping,
    EMAWeightAveraging as EMAWeightAveraging,
    GradientAccumulationScheduler as GradientAccumulationScheduler,
    LambdaCallback as LambdaCallback,
    LearningRateFinder as LearningRateFinder,
    LearningRateMonitor as LearningRateMonitor,
    ModelCheckpoint as ModelCheckpoint,
    ModelPruning as ModelPruning,
    ModelSummary as ModelSummary,
    OnExceptionCheckpoint as OnExceptionCheckpoint,
    OnlineEvaluator as OnlineEvaluator,
    ProgressBar as ProgressBar,
    QuantizationAwareTraining as QuantizationAwareTraining,
    RichModelSummary as RichModelSummary,
    RichProgressBar as RichProgressBar,
    SpikeDetection as SpikeDetection,
    StochasticWeightAveraging as StochasticWeightAveraging,
    ThroughputMonitor as ThroughputMonitor,
    Timer as Timer,
    TQDMProgressBar as TQDMProgressBar,
    WeightAveraging as WeightAveraging,
)
from .data import (
    DataModule as DataModule,
    LightningDataModule as LightningDataModule,
    RayRows as RayRows,
    StreamedRows as StreamedRows,
)
from .launch.executor import RayExecutor as RayExecutor
from .launch.options import RayCluster as RayCluster
from .loggers import (
    CSVLogger as CSVLogger,
    Logger as Logger,
    MLFlowLogger as MLFlowLogger,
    TensorBoardLogger as TensorBoardLogger,
    WandbLogger as WandbLogger,
)
from .module import LightningModule as LightningModule, Module as Module
from .run import Run as Run
from .seed import seed_everything as seed_everything
from .trainer import Trainer as Trainer
from .tuner import Tuner as Tuner
