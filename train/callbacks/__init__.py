"""What acts at the hooks of a run."""

from shipline.train.callbacks.batch_size_finder import BatchSizeFinder
from shipline.train.callbacks.callback import Callback
from shipline.train.callbacks.device_stats_monitor import DeviceStatsMonitor
from shipline.train.callbacks.early_stopping import EarlyStopping
from shipline.train.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
from shipline.train.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from shipline.train.callbacks.lambda_function import LambdaCallback
from shipline.train.callbacks.lr_finder import LearningRateFinder
from shipline.train.callbacks.lr_monitor import LearningRateMonitor
from shipline.train.callbacks.model_checkpoint import ModelCheckpoint
from shipline.train.callbacks.model_summary import ModelSummary, RichModelSummary
from shipline.train.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from shipline.train.callbacks.online_evaluator import OnlineEvaluator
from shipline.train.callbacks.prediction_writer import BasePredictionWriter
from shipline.train.callbacks.progress.progress_bar import ProgressBar
from shipline.train.callbacks.progress.rich_progress import RichProgressBar
from shipline.train.callbacks.progress.tqdm_progress import TQDMProgressBar
from shipline.train.callbacks.pruning import ModelPruning
from shipline.train.callbacks.quantization import QuantizationAwareTraining
from shipline.train.callbacks.spike import SpikeDetection
from shipline.train.callbacks.stochastic_weight_avg import StochasticWeightAveraging
from shipline.train.callbacks.throughput_monitor import ThroughputMonitor
from shipline.train.callbacks.timer import Timer
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
