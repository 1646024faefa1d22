"""A run that is killed at a random moment, and resumed, beside one that is not.

    python train_killed.py DIRECTORY WORKERS TRIALS

Everything that a run can have is in it: shuffled rows with random augmentation from all generators and one of the
dataset's own, loader workers, dropout, batch norm, accumulation, schedulers by steps, epochs and metric, validation in
mid-epoch, metrics that keep state, checkpoints every other step. Each child is forked from this process, and kills
itself with SIGKILL at an event drawn at random: before or after a step, a validation batch, an optimizer step, a row,
or any write to the store, in whichever thread. Prints as JSON what differs, and where it was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import numpy as np
import torch
import torch._dynamo  # optimizers import it: once here, and not in every child
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from training import metric_rows, rows

import shipline as sl
from shipline.store.store import LocalStore
from shipline.train.checkpoints.tree import encode_tree

ROWS, EPOCHS = 44, 3


class Events:
    """Counts events of this process; dies at the one it is to die at."""

    def __init__(self) -> None:
        self.count = 0
        self.die_at: int | None = None
        self.names: list[str] = []

    def __call__(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.die_at:
            os.write(REPORT, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)


event = Events()
REPORT = 0


class Augmented(Dataset[Any]):
    """Scans with noise from every generator there is, and one of its own."""

    def __init__(self) -> None:
        self.rows = rows(0, ROWS)
        self.own = np.random.default_rng(7)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        event(f"row {index}")
        image, digit = self.rows[index]
        noise = random.random() + np.random.rand() + torch.rand(1) + self.own.random()
        return image + 0.1 * noise, digit, index


class Everything(sl.Module):
    """All that a run has in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)
        self.train_accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)
        self.register_buffer("seen", torch.zeros(EPOCHS, ROWS))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        event("training step")
        image, digit, index = batch
        logits = self.net(image)
        self.seen[self.current_epoch, index] += 1
        loss = F.cross_entropy(logits, digit)
        self.train_accuracy(logits, digit)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_acc", self.train_accuracy, on_step=False, on_epoch=True)
        self.log("rate", self.trainer.optimizer.param_groups[0]["lr"])
        event("training step done")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        event("validation step")
        image, digit, _ = batch
        logits = self.net(image)
        self.accuracy.update(logits, digit)
        self.log("val_loss", F.cross_entropy(logits, digit))
        self.log("val_acc", self.accuracy)
        event("validation step done")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        event("optimizer step")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=0)
        by_epoch = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        return [optimizer], [
            {"scheduler": cosine, "interval": "step"}, {"scheduler": plateau, "monitor": "val_loss"}, by_epoch
        ]  # fmt: skip


def fit(root: str, workers: int, resume: bool) -> tuple[sl.Trainer, Any]:
    sl.seed_everything(3 if not resume else 99)
    train = DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=workers)
    val = DataLoader(Augmented(), batch_size=8, num_workers=workers)
    keep = sl.ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
    stop = sl.EarlyStopping("val_loss", patience=99)
    trainer = sl.Trainer(
        accelerator="cpu", default_root_dir=root, name="run", max_epochs=EPOCHS, accumulate_grad_batches=2,
        gradient_clip_val=1.0, val_check_interval=4, limit_val_batches=2, log_every_n_steps=1, callbacks=[keep, stop],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Everything()
    trainer.fit(module, train, val, ckpt_path="last" if resume else None)
    return trainer, module


def summary(trainer: sl.Trainer, module: Any) -> dict[str, Any]:
    """What must be the same."""
    optimizer, tensors = encode_tree(trainer.optimizer.state_dict())
    stop = next(c for c in trainer.callbacks if isinstance(c, sl.EarlyStopping))
    return {
        "weights": digest(module.state_dict()),
        "seen": module.seen.unique().tolist(),
        "optimizer": optimizer.decode() + digest(tensors),
        "schedules": [schedule.scheduler.state_dict()["_last_lr"] for schedule in trainer.schedules],
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "stopping": stop.state_dict(),
        "progress": trainer.progress.state_dict(),
        "rows": metric_rows(str(trainer.log_dir)),
    }


def digest(tensors: dict[str, torch.Tensor]) -> str:
    hashed = hashlib.sha256()
    for name, tensor in tensors.items():
        hashed.update(name.encode())
        hashed.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def watch_store() -> None:
    """Before and after each change of the store."""
    for name in ("write", "create", "remove"):
        setattr(LocalStore, name, _around(name, getattr(LocalStore, name)))


def _around(name: str, original: Callable[..., None]) -> Callable[..., None]:
    def around(store: LocalStore, key: str, *rest: Any) -> None:
        what = key.rpartition("/")[2]
        event(f"{name} {what}")
        original(store, key, *rest)
        event(f"{name} {what} done")

    return around


def child(root: str, workers: int, resume: bool, die_at: int | None) -> tuple[dict[str, Any] | None, str]:
    """Run a fit in a forked process; return its summary, or None and where it died."""
    global REPORT
    report = Path(f"{root}.report")
    report.parent.mkdir(parents=True, exist_ok=True)
    REPORT = os.open(report, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
    pid = os.fork()
    if not pid:
        os.setpgrp()
        event.count, event.die_at = 0, die_at
        try:
            found = summary(*fit(root, workers, resume))
        except sl.ShiplineError as error:  # a worker of the loader has died in place of this process
            os._exit(7 if "A worker process of the DataLoader died" in str(error) else 1)
        os.write(REPORT, (json.dumps([found, event.count]) + "\n").encode())
        os._exit(0)
    os.close(REPORT)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(ProcessLookupError):
        # One of PyTorch's data workers outlives a parent that is killed before the worker has looked who that is.
        os.killpg(pid, signal.SIGKILL)
    text = report.read_text()
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 7:
        return None, text.strip()
    assert os.WEXITSTATUS(status) == 0, text
    found, count = json.loads(text)
    return found, str(count)


def main(directory: str, workers: int, trials: int) -> None:
    torch.set_num_threads(1)
    watch_store()
    whole, count = child(f"{directory}/whole", workers, resume=False, die_at=None)
    assert whole is not None
    chance = random.Random(workers)
    results = []
    for trial in range(trials):
        root = f"{directory}/{trial}"
        found, died = None, []
        while found is None:
            resume = Path(f"{root}/run/checkpoints.json").exists()
            die_at = chance.randrange(1, int(count)) if len(died) < 2 else None
            found, where = child(root, workers, resume, die_at)
            if found is None:
                died.append(where)
        results.append({"died": died, "different": [key for key in whole if found[key] != whole[key]]})
    print(json.dumps({"events": int(count), "seen": whole["seen"], "trials": results}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
