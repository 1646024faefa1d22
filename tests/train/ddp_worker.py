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
from strategy_conformance import StrategyConformance
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import (
    Counting,
    Mlp,
    Recorder,
    Scripted,
    bare_trainer,
    new_trainer,
    numbers,
    on_hook,
    rows,
    train_loader,
    val_loader,
)

import shipline as sl
from docs import classes
from shipline.checkpoint import open_checkpoint
from shipline.errors import ConfigError
from shipline.train import BasePredictionWriter, SpikeDetection, ThroughputMonitor, loops
from shipline.train.callbacks.spike import TrainingSpikeException
from shipline.train.data import Loaders
from shipline.train.run import RunDirectory
from shipline.train.strategies import Strategy, pick_strategy

STRATEGIES = {"ddp": 1e-4, "ddp_find_unused_parameters_true": 1e-4, "of the page": 1e-2}  # with their tolerances
SIZES = (1, 2, 5, 37)


def fingerprint(module: torch.nn.Module) -> list[float]:
    """Weights as numbers that JSON holds exactly."""
    return [float(tensor.double().sum()) for tensor in module.state_dict().values()]


def difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """The greatest between their weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def fit(trainer: sl.Trainer, module: Any, train: Any, val: Any = None, resume: str | None = None) -> None:
    checkpoint = None if resume is None else open_checkpoint(resume)
    loops.fit(trainer, module, Loaders(train, val), checkpoint, pick_strategy("auto", dist.get_world_size()))


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


def gradients() -> list[Any]:
    """Weights after training on halves of batches, and after a plain loop over whole ones."""
    torch.manual_seed(0)
    module = Mlp()
    fit(bare_trainer(max_epochs=2), module, DataLoader(rows(0, 128), 16))
    torch.manual_seed(0)
    plain = Mlp()
    optimizer = plain.configure_optimizers()
    for _ in range(2):
        for image, digit in DataLoader(rows(0, 128), 32):
            loss = F.cross_entropy(plain(image), digit)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return [fingerprint(module), difference(module, plain)]


def skips(rank: int) -> list[Any]:
    """Weights where one worker's loss is not finite at batches 1, 4 and 5 of 6, two to a step; and a plain loop's."""
    left_out = (1, 4, 5)

    class Overflows(Mlp):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if rank == 1 and batch_idx in left_out else loss

    torch.manual_seed(0)
    module = Overflows()
    fit(
        bare_trainer(max_epochs=1, accumulate_grad_batches=2, nonfinite_loss="skip"), module, DataLoader(rows(0, 96), 8)
    )
    torch.manual_seed(0)
    plain = Mlp()
    optimizer = plain.configure_optimizers()
    for index, (image, digit) in enumerate(DataLoader(rows(0, 96), 16)):
        if index % 2 == 0:
            optimizer.zero_grad()
        if index not in left_out:
            (F.cross_entropy(plain(image), digit) / 2).backward()  # type: ignore[no-untyped-call]
        if index % 2:
            optimizer.step()
    return [fingerprint(module), difference(module, plain)]


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


def apart(cls: Any, strategy: str, **options: Any) -> float:
    """How far the weights are from those of one worker, after both have trained on the same batches."""
    modules = []
    for workers in (dist.get_world_size(), 1):
        torch.manual_seed(0)
        modules.append(cls())
        trainer = bare_trainer(max_epochs=2, **options)
        data = Loaders(DataLoader(rows(0, 128), 32 // workers))
        loops.fit(trainer, modules[-1], data, None, pick_strategy(strategy, workers))
    return difference(*modules)


class TwoByHand(Mlp):
    """Two optimizers, each with a backward pass of its own through its own parameters."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for optimizer in self.optimizers():
            with optimizer.toggle_model():
                loss = F.cross_entropy(self(batch[0]), batch[1])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.layers[index].parameters(), lr=0.1, momentum=0.9) for index in (0, 3)]


class WaitsByHand(Mlp):
    """Exchanges gradients with every second batch only."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer, second = self.optimizers(), batch_idx % 2 == 1
        with optimizer.toggle_model(sync_grad=second):
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]) / 2)
        own = [parameter.grad.double().sum().item() for parameter in self.parameters()]
        everybody = self.trainer.strategy.gather(own)
        if self.trainer.world_size > 1:
            assert (everybody[0] == everybody[1]) == second
        if second:
            optimizer.step()
            optimizer.zero_grad()


class Branches(Mlp):
    """Has a layer that no step uses, and one that every second step does."""

    def __init__(self) -> None:
        super().__init__()
        self.never, self.sometimes = nn.Linear(64, 64), nn.Linear(64, 64)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        image = self.sometimes(batch[0]) if batch_idx % 2 else batch[0]
        return F.cross_entropy(self(image), batch[1])


class Normed(Mlp):
    """Has running statistics, which are the first worker's."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:  # those that the first step has left, exchanged when the second one began
            means = self.trainer.strategy.gather(self.norm.running_mean.double().sum().item())
            assert len(set(means)) == 1
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self(self.norm(batch[0])), batch[1]))
        optimizer.step()


def normed() -> list[int]:
    """Trains, which checks itself; the numbers that hooks are told."""
    trainer = bare_trainer(max_epochs=1)
    fit(trainer, Normed(), DataLoader(rows(0, 64), 16))
    return [trainer.global_rank, trainer.local_rank, trainer.node_rank, trainer.world_size]


def one_is_infinite(rank: int) -> list[Any]:
    """Weights and scale where the second worker overflows in the third step."""

    class Overflows(Mlp):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            factor = 1e30 if rank and batch_idx == 2 else 1.0
            return super().training_step(batch, batch_idx) * factor

    torch.manual_seed(0)
    module, trainer = Overflows(), bare_trainer(max_epochs=1, precision="16-mixed")
    fit(trainer, module, DataLoader(rows(0, 128), 16))
    return [fingerprint(module), trainer.precision_plugin.state_dict()]


def compiled() -> list[Any]:
    """The difference from one worker's weights, and how many graphs were compiled."""
    graphs = []

    def backend(graph: Any, _example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return [apart(Mlp, "ddp", compile={"backend": backend}), len(graphs)]


def shares() -> list[list[int]]:
    """Which rows this worker trains on, with a sampler of the Trainer's and without."""
    found = []
    for given in (True, False):
        seen: list[int] = []
        look = on_hook("on_train_batch_end", lambda _t, _m, _o, batch, _i, to=seen: to.extend(batch[0].int().tolist()))
        fit(bare_trainer(max_epochs=1, use_distributed_sampler=given, callbacks=look), Scripted(), numbers(4))
        found.append(seen)
    return found


def refused() -> str:
    """What is said of batch norm over all workers, on the CPU."""
    try:
        fit(bare_trainer(max_epochs=1, sync_batchnorm=True), Normed(), DataLoader(rows(0, 64), 16))
    except ConfigError as error:
        return str(error)
    return ""


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
