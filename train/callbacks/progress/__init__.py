"""Bars that show how far a stage is."""

from shipline.train.callbacks.progress.progress_bar import ProgressBar
from shipline.train.callbacks.progress.rich_progress import RichProgressBar, RichProgressBarTheme
from shipline.train.callbacks.progress.tqdm_progress import TQDMProgressBar

__all__ = ["ProgressBar", "RichProgressBar", "RichProgressBarTheme", "TQDMProgressBar"]
