"""The same script, whoever starts it: alone, by torchrun, by SLURM.

    python anywhere.py DIRECTORY

Prints as JSON what this worker saw.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from training import FailsOnOneWorker, Mlp, bare_trainer, new_trainer, on_hook, rows

import shipline as sl
from shipline.errors import ConfigError, TrainingError
from shipline.train import distributed


class Predicts(Mlp):
    """Draws random numbers in training, others on each worker, that change nothing."""

    drawn = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn = torch.rand(1).item()
        return super().training_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch[1]


def exchanged(rank: int) -> list[Any]:
    """What the utilities make of tensors in trees, those of one form and others."""
    tree = {"a": torch.full((2,), float(rank + 1)), "b": [torch.tensor(rank), "text"]}
    gathered, total = distributed.all_gather(tree), distributed.reduce(tree, "sum")
    first, uneven = distributed.broadcast(tree), torch.arange(rank + 1.0)
    said = []
    for call in (lambda: distributed.all_gather({"a": uneven}), lambda: distributed.reduce([uneven] * (rank + 1))):
        try:
            call()
        except ConfigError as error:
            said.append(str(error))
    return [
        gathered["a"].tolist(), gathered["b"][0].tolist(), gathered["b"][1], total["a"].tolist(), first["a"].tolist(),
        distributed.all_gather(uneven, pad=-1).tolist(), distributed.gather_objects(rank),
        distributed.broadcast_object({"rank": rank}, src=dist.get_world_size() - 1), *said,
    ]  # fmt: skip


def failure() -> str:
    """What is said on this worker where another one fails: here once that one has ended."""
    try:
        bare_trainer(max_epochs=1).fit(FailsOnOneWorker(), DataLoader(rows(0, 128), 16))
    except TrainingError as error:
        return str(error)
    return ""


def main(directory: str) -> dict[str, Any]:
    """Train, evaluate and predict."""
    sl.seed_everything(0)
    module = Predicts()
    told = on_hook("on_train_batch_end", lambda trainer, *_: ask(trainer))
    saved_in = os.environ.get("SAVED_IN")
    callbacks = [told] if saved_in is None else [told, sl.ModelCheckpoint(dirpath=saved_in)]
    trainer = new_trainer(
        f"{directory}/runs", max_epochs=2, name="anywhere", log_every_n_steps=1, callbacks=callbacks,
        enable_progress_bar=True, enable_model_summary=True,
    )  # fmt: skip
    each = 32 // trainer.world_size
    run = trainer.fit(module, DataLoader(rows(0, 128), each), DataLoader(rows(1400, 1437), 8))
    found = {
        "place": [trainer.global_rank, trainer.local_rank, trainer.world_size],
        "drawn": module.drawn,
        "ray": "ray" in sys.modules,
        "url": run.url,
        "step": trainer.global_step,
        "weights": [parameter.tolist() for parameter in module.parameters()],
        "validated": trainer.validate(module, DataLoader(rows(1400, 1437), 8))[0],
        "predicted": torch.cat(trainer.predict(module, DataLoader(rows(0, 37), 8))).tolist(),
        "group": dist.is_initialized(),
    }
    if os.environ.get("MORE"):
        found |= {"exchanged": exchanged(trainer.global_rank), "failure": failure()}
    return found


def ask(trainer: sl.Trainer) -> None:
    """On the last worker alone, once: what SLURM sends when the time is nearly over, and again."""
    asked = os.environ.get("SLURM_RESTART_COUNT") == "0" and trainer.global_rank == trainer.world_size - 1
    if asked and trainer.global_step == 3:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)


def note_threads() -> None:
    """What this process still has of the group's when it has left it: Linux calls threads by name."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    left = sorted(name for name in names if "gloo" in name)
    Path(f"{sys.argv[1]}/{os.environ.get('SLURM_PROCID', 'other')}.left").write_text(json.dumps(left))


if __name__ == "__main__":
    atexit.register(note_threads)  # the first is called last
    torch.set_num_threads(1)
    result = main(sys.argv[1])
    Path(f"{sys.argv[1]}/{result['place'][0]}.json").write_text(json.dumps(result))
