"""Several loaders as one, where Lightning has it."""

from shipline.train.data.combined import CombinedLoader

__all__ = ["CombinedLoader"]
