"""Where the time of a run goes."""

from shipline.train.profilers.base import Profiler

__all__ = ["Profiler"]
