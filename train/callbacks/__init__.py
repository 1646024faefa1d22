"""What acts at the hooks of a run."""

from shipline.train.callbacks.base import Callback
from shipline.train.callbacks.batch_size_finder import BatchSizeFinder
from shipline.train.callbacks.checkpoint import ModelCheckpoint
from shipline.train.callbacks.early_stopping import EarlyStopping
from shipline.train.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
from shipline.train.callbacks.lr_finder import LearningRateFinder
from shipline.train.callbacks.online_evaluator import OnlineEvaluator
from shipline.train.callbacks.progress import ProgressBar
from shipline.train.callbacks.pruning import ModelPruning
from shipline.train.callbacks.quantization import QuantizationAwareTraining
from shipline.train.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from shipline.train.callbacks.summary import ModelSummary
from shipline.train.callbacks.timer import Timer
from shipline.train.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

__all__ = [
    "BackboneFinetuning",
    "BaseFinetuning",
    "BatchSizeFinder",
    "Callback",
    "EMAWeightAveraging",
    "EarlyStopping",
    "LearningRateFinder",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnlineEvaluator",
    "ProgressBar",
    "QuantizationAwareTraining",
    "StochasticWeightAveraging",
    "Timer",
    "WeightAveraging",
]
