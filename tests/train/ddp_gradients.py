"""Gradients that several workers exchange: by hand, where a layer is not used, where one overflows, compiled."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from ddp_fit import difference, fingerprint, fit
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from training import Mlp, bare_trainer, rows

from shipline.errors import ConfigError
from shipline.train import loops
from shipline.train.data import Loaders
from shipline.train.strategies import pick_strategy


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


def refused() -> str:
    """What is said of batch norm over all workers, on the CPU."""
    try:
        fit(bare_trainer(max_epochs=1, sync_batchnorm=True), Normed(), DataLoader(rows(0, 64), 16))
    except ConfigError as error:
        return str(error)
    return ""
