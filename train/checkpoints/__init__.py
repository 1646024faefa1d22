"""From a run to a checkpoint and back."""

from shipline.train.checkpoints.restore import find_checkpoint, load_module, restore
from shipline.train.checkpoints.save import prepare, save
from shipline.train.checkpoints.writer import Writer

__all__ = ["Writer", "find_checkpoint", "load_module", "prepare", "restore", "save"]
