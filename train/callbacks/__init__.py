"""What acts at the hooks of a run."""

from shipline.train.callbacks.base import Callback
from shipline.train.callbacks.batch_size_finder import BatchSizeFinder
from shipline.train.callbacks.checkpoint import ModelCheckpoint
from shipline.train.callbacks.device_stats import DeviceStatsMonitor
from shipline.train.callbacks.early_stopping import EarlyStopping
from shipline.train.callbacks.exception_checkpoint import OnExceptionCheckpoint
from shipline.train.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
from shipline.train.callbacks.gradient_accumulation import GradientAccumulationScheduler
from shipline.train.callbacks.lambda_function import LambdaCallback
from shipline.train.callbacks.lr_finder import LearningRateFinder
from shipline.train.callbacks.lr_monitor import LearningRateMonitor
from shipline.train.callbacks.online_evaluator import OnlineEvaluator
from shipline.train.callbacks.prediction_writer import BasePredictionWriter
from shipline.train.callbacks.progress import ProgressBar
from shipline.train.callbacks.pruning import ModelPruning
from shipline.train.callbacks.quantization import QuantizationAwareTraining
from shipline.train.callbacks.rich_progress import RichProgressBar
from shipline.train.callbacks.spike import SpikeDetection
from shipline.train.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from shipline.train.callbacks.summary import ModelSummary, RichModelSummary
from shipline.train.callbacks.throughput import ThroughputMonitor
from shipline.train.callbacks.timer import Timer
from shipline.train.callbacks.tqdm_progress import TQDMProgressBar
from shipline.train.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "Callback",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "OnlineEvaluator",
    "ProgressBar",
    "QuantizationAwareTraining",
    "RichModelSummary",
    "RichProgressBar",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]
