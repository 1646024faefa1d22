"""Where metrics go."""

from shipline.train.loggers.base import Logger
from shipline.train.loggers.csv import CSVLogger

__all__ = ["CSVLogger", "Logger"]
