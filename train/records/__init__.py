"""What is written down of a run besides its metrics and checkpoints, so that it can be understood later."""

from shipline.train.records.background import Background
from shipline.train.records.code import Code
from shipline.train.records.records import Records

__all__ = ["Background", "Code", "Records"]
