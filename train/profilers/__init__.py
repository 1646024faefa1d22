"""Where the time of a run goes, and the memory."""

from shipline.train.profilers.advanced import AdvancedProfiler
from shipline.train.profilers.base import PassThroughProfiler, Profiler
from shipline.train.profilers.memory import MemoryProfiler
from shipline.train.profilers.pytorch import PyTorchProfiler
from shipline.train.profilers.simple import SimpleProfiler

__all__ = ["AdvancedProfiler", "MemoryProfiler", "PassThroughProfiler", "Profiler", "PyTorchProfiler", "SimpleProfiler"]
