from .batch_size_finder import BatchSizeFinder as BatchSizeFinder
from .callback import Callback as Callback
from .device_stats_monitor import DeviceStatsMonitor as DeviceStatsMonitor
from .early_stopping import EarlyStopping as EarlyStopping
from .finetuning import BackboneFinetuning as BackboneFinetuning, BaseFinetuning as BaseFinetuning
from .gradient_accumulation_scheduler import GradientAccumulationScheduler as GradientAccumulationScheduler
from .lambda_function import LambdaCallback as LambdaCallback
from .lr_finder import LearningRateFinder as LearningRateFinder
from .lr_monitor import LearningRateMonitor as LearningRateMonitor
from .model_checkpoint import ModelCheckpoint as ModelCheckpoint
from .model_summary import ModelSummary as ModelSummary, RichModelSummary as RichModelSummary
from .on_exception_checkpoint import OnExceptionCheckpoint as OnExceptionCheckpoint
from .online_evaluator import OnlineEvaluator as OnlineEvaluator
from .prediction_writer import BasePredictionWriter as BasePredictionWriter
from .progress.progress_bar import ProgressBar as ProgressBar
from .progress.rich_progress import RichProgressBar as RichProgressBar
from .progress.tqdm_progress import TQDMProgressBar as TQDMProgressBar
from .pruning import ModelPruning as ModelPruning
from .quantization import QuantizationAwareTraining as QuantizationAwareTraining
from .spike import SpikeDetection as SpikeDetection
from .stochastic_weight_avg import StochasticWeightAveraging as StochasticWeightAveraging
from .throughput_monitor import ThroughputMonitor as ThroughputMonitor
from .timer import Timer as Timer
from .weight_averaging import EMAWeightAveraging as EMAWeightAveraging, WeightAveraging as WeightAveraging
