"""One of several workers that train together without Ray: a process group of PyTorch's, the same loop.

    python ddp_worker.py RANK WORLD_SIZE DIRECTORY

Prints as JSON what this worker saw of each scenario.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
import types
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
sys.path.insert(0, str(Path(__file__).parent.parent / "conformance"))

import torch
import torch.distributed as dist
from ddp_fit import fingerprint, fit
from ddp_gradients import (
    Branches,
    TwoByHand,
    WaitsByHand,
    apart,
    compiled,
    gradients,
    normed,
    one_is_infinite,
    refused,
    skips,
)
from strategy_conformance import StrategyConformance
from training import (
    Counting,
    Mlp,
    Recorder,
    Scripted,
    bare_trainer,
    new_trainer,
    numbers,
    on_hook,
    train_loader,
    val_loader,
)

import shipline as sl
from docs import classes
from shipline.train import BasePredictionWriter, SpikeDetection, ThroughputMonitor, loops
from shipline.train.callbacks.spike import TrainingSpikeException
from shipline.train.data import Loaders
from shipline.train.run import RunDirectory
from shipline.train.strategies import Strategy, pick_strategy

STRATEGIES = {"ddp": 1e-4, "ddp_find_unused_parameters_true": 1e-4, "of the page": 1e-2}  # with their tolerances
SIZES = (1, 2, 5, 37)


def evaluation() -> list[Any]:
    """Metrics over all workers and those of one process, for datasets of several sizes."""
    found = []
    for size in SIZES:
        torch.manual_seed(0)
        module, trainer = Counting(), bare_trainer(max_epochs=1)
        fit(trainer, module, train_loader(64), val_loader(size, 4))
        together = {name: float(value) for name, value in trainer.callback_metrics.items()}
        alone = bare_trainer(strategy="single_device").validate(module, val_loader(size, 4))[0]
        found.append((together, alone))
    return found


def resume(root: str, rank: int) -> list[Any]:
    """Weights after four epochs, and after two and two; shuffled, with dropout that differs between workers."""

    def epochs(name: str, count: int, resume: str | None = None) -> list[float]:
        sl.seed_everything(0)
        module = Mlp(dropout=0.5)
        torch.manual_seed(rank if resume is None else 99)
        trainer = new_trainer(root, max_epochs=count, name=name, log_every_n_steps=1)
        trainer.run_directory = RunDirectory(f"{root}/{name}", "version_0")
        fit(trainer, module, train_loader(128), val_loader(9, 4), resume)
        return fingerprint(module)

    whole = epochs("whole", 4)
    epochs("parts", 2)
    return [whole, epochs("parts", 4, f"{root}/parts/last")]


def stop(root: str, rank: int) -> list[Any]:
    """When each worker stops and what it saves, by metrics and wishes that differ between them."""

    class Differs(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("in_steps", float(rank * self.current_epoch))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("in_epochs", float(rank * self.current_epoch))

    def ask(trainer: sl.Trainer, _module: Any) -> None:
        trainer.should_stop = rank == 1 and trainer.current_epoch == 3

    found: list[Any] = []
    for monitor in ("in_steps", "in_epochs"):
        stopping = sl.EarlyStopping(monitor, patience=2)
        keep = sl.ModelCheckpoint(monitor=monitor, save_last=False, dirpath=f"{root}/{monitor}")
        trainer = new_trainer(root, max_epochs=9, callbacks=[stopping, keep], logger=False)
        fit(trainer, Differs(), numbers(4), numbers(4))
        found.append(
            [
                trainer.epochs_done,
                stopping.best_score.item(),
                trainer.callback_metrics[monitor].item(),
                keep.best_model_path,
            ]
        )
    trainer = bare_trainer(max_epochs=9, callbacks=on_hook("on_train_epoch_end", ask))
    fit(trainer, Differs(), numbers(4))
    return [*found, trainer.epochs_done]


def conformance() -> dict[str, dict[str, str]]:
    """What failed of what every strategy must do, by strategy and test."""

    def failure(name: str, strategy: str) -> str:
        tests = StrategyConformance()
        tests.tolerance = STRATEGIES[strategy]
        try:
            getattr(tests, name)(made(strategy))
        except Exception:
            return traceback.format_exc()
        return ""

    names = [name for name in dir(StrategyConformance) if name.startswith("test_")]
    return {strategy: {name: failure(name, strategy) for name in names} for strategy in STRATEGIES}


def made(name: str) -> Strategy:
    """The strategy of that name, or the example in docs/extending.md."""
    if name != "of the page":
        return pick_strategy(name, dist.get_world_size())
    module = sys.modules.setdefault("extending", types.ModuleType("extending"))
    if not hasattr(module, "CompressedDdp"):
        exec(classes("extending"), vars(module))  # noqa: S102 -- our own page
    return module.CompressedDdp()  # type: ignore[no-any-return]


def shares() -> list[list[int]]:
    """Which rows this worker trains on, with a sampler of the Trainer's and without."""
    found = []
    for given in (True, False):
        seen: list[int] = []
        look = on_hook("on_train_batch_end", lambda _t, _m, _o, batch, _i, to=seen: to.extend(batch[0].int().tolist()))
        fit(bare_trainer(max_epochs=1, use_distributed_sampler=given, callbacks=look), Scripted(), numbers(4))
        found.append(seen)
    return found


class Writes(BasePredictionWriter):
    """Keeps which rows it was given."""

    def __init__(self) -> None:
        super().__init__("batch_and_epoch")
        self.rows: list[Any] = []
        self.all: Any = None

    def write_on_batch_end(
        self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, batch: Any, *where: int
    ) -> None:
        assert prediction.tolist() == [-float(index) for index in batch_indices]
        self.rows.append((*where, batch_indices))

    def write_on_epoch_end(self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any) -> None:
        self.all = batch_indices


def callbacks(root: str, rank: int) -> list[Any]:
    """What each worker writes of predictions, when it sees a spike that the second one has, and which rates it logs."""

    class Negative(Scripted):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return -batch[0]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) * 0 + (90 if rank == 1 and batch_idx == 3 else 1)

    writer = Writes()
    data = Loaders(predict=[numbers(37, 4), numbers(3, 2)])
    loops.predict(
        bare_trainer(callbacks=writer), Negative(), data, pick_strategy("auto", dist.get_world_size()), keep=False
    )
    spikes, rates, log = (
        SpikeDetection(exclude_batches_path=f"{root}/spikes"),
        ThroughputMonitor(window_size=2),
        Recorder(),
    )
    trainer = bare_trainer(max_epochs=1, logger=log, log_every_n_steps=1, callbacks=[rates, spikes])
    try:
        fit(trainer, Negative(), numbers(12))
    except TrainingSpikeException:
        names = sorted({name for _, values in log.rows for name in values})
        return [writer.rows, writer.all, spikes.bad_batches, names]
    return []


def main(rank: int, world_size: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/meeting",
        timeout=timedelta(seconds=60),
        rank=rank,
        world_size=world_size,
    )
    try:
        found = {
            "evaluation": evaluation(),
            "gradients": gradients(),
            "skips": skips(rank),
            "resume": resume(f"{directory}/runs", rank),
            "stop": stop(f"{directory}/runs", rank),
            "conformance": conformance(),
            "two by hand": apart(TwoByHand, "ddp_find_unused_parameters_true"),
            "waits by hand": apart(WaitsByHand, "ddp"),
            "branches": apart(Branches, "ddp_find_unused_parameters_true"),
            "normed": normed(),
            "one is infinite": one_is_infinite(rank),
            "compiled": compiled(),
            "shares": shares(),
            "refused": refused(),
            "callbacks": callbacks(directory, rank),
        }
        print(json.dumps(found))
    finally:
        gc.collect()  # what still holds the group would otherwise end its threads when nobody can any more
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
