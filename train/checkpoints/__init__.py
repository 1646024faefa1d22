"""From a run to a checkpoint and back."""

from shipline.train.checkpoints.restore import find_checkpoint, load_module, newest, restore
from shipline.train.checkpoints.save import prepare, save
from shipline.train.checkpoints.writer import Writer

__all__ = ["Writer", "find_checkpoint", "load_module", "newest", "prepare", "restore", "save"]
