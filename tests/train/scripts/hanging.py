"""Training in which the last worker hangs, each time in another way and at another place.

    python hanging.py RANK DIRECTORY PORTS

One of two tasks of SLURM's. Each time it forks, since what hangs is ended; prints as JSON how each fork ended, and what
that said.
"""

from __future__ import annotations

import ctypes
import json
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
    "gil": lambda: ctypes.PyDLL(None).sleep(600),
    "sleeps": lambda: time.sleep(600),
    "gone": lambda: os.kill(os.getpid(), signal.SIGKILL),
}
TIMES = [("stopped", "train"), ("gil", "validate"), ("sleeps", "save"), ("gone", "train")]


class Hangs(Mlp):
    """The last worker hangs: at its third batch, or when a checkpoint is made."""

    def __init__(self, how: str, where: str) -> None:
        super().__init__()
        self.how, self.where = how, where

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
        if where == self.where and self.trainer.global_rank == self.trainer.world_size - 1:
            WAYS[self.how]()


def train(how: str, where: str, root: str, port: str) -> None:
    """Train as a task of a step of its own."""
    os.environ["MASTER_PORT"] = port
    sl.seed_everything(0)
    trainer = new_trainer(root, max_epochs=1, step_timeout=3, num_sanity_val_steps=0, name=f"{how}-{where}")
    trainer.fit(Hangs(how, where), DataLoader(rows(0, 128), 16), DataLoader(rows(1400, 1500), 8))


def forked(how: str, where: str, root: str, port: str) -> tuple[int, str]:
    """How a fork that trains ended, and what it wrote to its standard error."""
    said = Path(f"{root}/said-{os.environ['SLURM_PROCID']}-{port}")
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        try:
            train(how, where, root, port)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.read_text()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, _, directory, *ports = sys.argv
    ended = [forked(how, where, directory, port) for (how, where), port in zip(TIMES, ports, strict=True)]
    print(json.dumps(ended))
