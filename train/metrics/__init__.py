"""What `self.log` records, and how it is reduced over an epoch and over all workers."""

from shipline.train.metrics.batch import rows_of
from shipline.train.metrics.log import EpochMetrics, MetricLog, Stage, finite_or_none

__all__ = ["EpochMetrics", "MetricLog", "Stage", "finite_or_none", "rows_of"]
