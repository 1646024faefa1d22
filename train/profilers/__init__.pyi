from .advanced import AdvancedProfiler as AdvancedProfiler
from .base import PassThroughProfiler as PassThroughProfiler, Profiler as Profiler
from .memory import MemoryProfiler as MemoryProfiler
from .pytorch import PyTorchProfiler as PyTorchProfiler
from .simple import SimpleProfiler as SimpleProfiler
