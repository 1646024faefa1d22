"""Where the time of a run goes, and the memory."""

from shipline.train.profilers.base import Profiler
from shipline.train.profilers.simple import SimpleProfiler

__all__ = ["Profiler", "SimpleProfiler"]
