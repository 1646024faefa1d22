"""One of several workers whose gradients travel in fewer bytes: PyTorch's process group, the same loop.

    python compressed_worker.py RANK WORLD_SIZE DIRECTORY

Prints as JSON how far its weights are from those of gradients that travel as they are.
"""

from __future__ import annotations

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from training import Mlp, StepsByHand, bare_trainer, new_trainer, rows

import shipline as sl
from shipline.checkpoint import open_checkpoint
from shipline.train import loops
from shipline.train.data import Loaders
from shipline.train.run import RunDirectory
from shipline.train.strategies import Ddp
from shipline.train.strategies.zero import Zero1


class ByHand(StepsByHand, Mlp):
    """With its backward pass inside the training step."""


def fit(trainer: sl.Trainer, strategy: Ddp, kind: type[Mlp] = Mlp, resume: str | None = None) -> list[torch.Tensor]:
    sl.seed_everything(0)
    module = kind()
    checkpoint = None if resume is None else open_checkpoint(resume)
    loops.fit(trainer, module, Loaders(DataLoader(rows(0, 128), 16)), checkpoint, strategy)
    return [parameter.detach() for parameter in module.parameters()]


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def run(root: str, name: str, epochs: int, resume: str | None = None) -> list[torch.Tensor]:
    """Train with checkpoints."""
    trainer = new_trainer(root, max_epochs=epochs, name=name)
    trainer.run_directory = RunDirectory(f"{root}/{name}", "version_0")
    return fit(trainer, Ddp(comm_hook="bf16"), resume=resume)


def main(rank: int, count: int, root: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    store = dist.FileStore(f"{root}/store", count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=90))
    options: dict[str, Any] = {"max_epochs": 2, "gradient_clip_val": None}
    found: dict[str, Any] = {}
    for name, kind, more in (("plain", Mlp, {}), ("by hand", ByHand, {}), ("two", Mlp, {"accumulate_grad_batches": 2})):
        exact = fit(bare_trainer(**options, **more), Ddp(), kind)
        for hook in ("fp16", "bf16"):
            weights = fit(bare_trainer(**options, **more), Ddp(comm_hook=hook), kind)
            sums = Ddp().gather([float(weight.double().sum()) for weight in weights])
            kinds = {str(weight.dtype) for weight in weights}
            found[f"{name}, {hook}"] = [difference(weights, exact), sums == [sums[0]] * count, sorted(kinds)]
    shared = fit(bare_trainer(**options), Zero1(comm_hook="bf16"))
    found["zero1"] = difference(shared, fit(bare_trainer(**options), Ddp(comm_hook="bf16")))
    whole = run(f"{root}/runs", "whole", 2)
    run(f"{root}/runs", "half", 1)
    found["resumed"] = difference(run(f"{root}/runs", "again", 2, f"{root}/runs/half/last"), whole)
    dist.destroy_process_group()
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
