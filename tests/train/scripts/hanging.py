"""Training in which the last worker hangs, in one of several ways, while it trains, validates, or a checkpoint is made.

    python hanging.py HOW WHERE DIRECTORY

Started as one of the tasks of SLURM's.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
from torch.utils.data import DataLoader
from training import Mlp, new_trainer, rows

import shipline as sl

WAYS = {
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "holds the GIL": lambda: ctypes.PyDLL(None).sleep(600),
    "sleeps": lambda: time.sleep(600),
    "gone": lambda: os.kill(os.getpid(), signal.SIGKILL),
}


class Hangs(Mlp):
    """The last worker hangs at its third batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            self.hang("train")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx >= 2:
            self.hang("validate")
        return super().validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        self.hang("save")

    def hang(self, where: str) -> None:
        if where == sys.argv[2] and self.trainer.global_rank == self.trainer.world_size - 1:
            WAYS[sys.argv[1]]()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sl.seed_everything(0)
    trainer = new_trainer(sys.argv[3], max_epochs=1, step_timeout=4, num_sanity_val_steps=0, name="hangs")
    trainer.fit(Hangs(), DataLoader(rows(0, 128), 16), DataLoader(rows(1400, 1500), 8))
