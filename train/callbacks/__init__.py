"""What acts at the hooks of a run."""

from shipline.train.callbacks.base import Callback
from shipline.train.callbacks.checkpoint import ModelCheckpoint
from shipline.train.callbacks.early_stopping import EarlyStopping
from shipline.train.callbacks.progress import ProgressBar
from shipline.train.callbacks.summary import ModelSummary
from shipline.train.callbacks.timer import Timer

__all__ = ["Callback", "EarlyStopping", "ModelCheckpoint", "ModelSummary", "ProgressBar", "Timer"]
