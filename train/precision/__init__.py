"""In which numbers a module computes."""

from shipline.train.precision.base import Precision
from shipline.train.precision.mixed import MixedPrecision
from shipline.train.precision.true import TruePrecision

__all__ = ["MixedPrecision", "Precision", "TruePrecision"]
