"""What every strategy must do, with any number of workers: all of them run these tests together."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from training import Mlp, StepsByHand, bare_trainer, rows

from shipline.errors import ConfigError
from shipline.train import loops
from shipline.train.data import Loaders
from shipline.train.strategies import Strategy

Gradients = list[torch.Tensor]


class ByHand(StepsByHand, Mlp):
    """Mlp with its backward pass inside the training step."""


class StrategyConformance:
    """Inherit, and give a fixture `strategy`; its process group, if it needs one, is there."""

    #: How far gradients and weights may be from those of one worker, as a share of them.
    tolerance = 1e-4

    def test_it_knows_its_place(self, strategy: Strategy) -> None:
        assert 0 <= strategy.rank < strategy.world_size
        assert strategy.global_rank == strategy.rank
        assert strategy.is_global_zero == (strategy.rank == 0)
        assert (strategy.local_rank, strategy.node_rank) >= (0, 0)
        assert strategy.gather(strategy.rank) == list(range(strategy.world_size))
        strategy.barrier("here")

    def test_values_travel(self, strategy: Strategy) -> None:
        own = {"rank": strategy.rank, "of": [1.5, None, "text"]}
        assert strategy.gather(own) == [own | {"rank": rank} for rank in range(strategy.world_size)]
        for source in range(strategy.world_size):
            assert strategy.broadcast(own, source)["rank"] == source

    def test_decisions_are_made_together(self, strategy: Strategy) -> None:
        only_the_first = strategy.rank == 0
        assert strategy.reduce_boolean_decision(only_the_first, all=False)
        assert strategy.reduce_boolean_decision(only_the_first) == (strategy.world_size == 1)
        assert strategy.reduce_boolean_decision(True)
        assert not strategy.reduce_boolean_decision(False, all=False)

    def test_tensors_are_stacked(self, strategy: Strategy) -> None:
        own = torch.full((2, 3), float(strategy.rank)).t()
        stacked = strategy.all_gather(own)
        want = torch.stack([torch.full((3, 2), float(rank)) for rank in range(strategy.world_size)])
        assert torch.equal(stacked, want if strategy.world_size > 1 else own)

    def test_gradients_go_back_through_stacked_tensors(self, strategy: Strategy) -> None:
        own = torch.ones(2, requires_grad=True)
        stacked = strategy.all_gather(own * (strategy.rank + 1), sync_grads=True)
        (stacked.sum() * (strategy.rank + 1)).backward()
        # Each worker's loss has a share in it, of which the worker's own factor comes back.
        shares = sum(range(1, strategy.world_size + 1))
        assert torch.equal(own.grad, torch.full((2,), float(shares * (strategy.rank + 1))))  # type: ignore[arg-type]

    def test_tensors_are_reduced(self, strategy: Strategy) -> None:
        everybody = [float(rank + 1) for rank in range(strategy.world_size)]
        own = torch.tensor(everybody[strategy.rank])
        product = torch.tensor(everybody).prod().item()
        wanted = {"mean": sum(everybody) / len(everybody), "sum": sum(everybody), "product": product}
        wanted |= {"max": max(everybody), "min": 1.0, "avg": wanted["mean"]}
        for name, value in wanted.items():
            assert strategy.reduce(own, reduce_op=name).item() == value, name
        assert strategy.reduce(own).item() == wanted["mean"]
        assert strategy.reduce(own, reduce_op=dist.ReduceOp.MAX).item() == wanted["max"]
        assert own.item() == everybody[strategy.rank]
        assert strategy.reduce("no tensor") == "no tensor"
        with pytest.raises(ConfigError, match=r"reduce_op='meen'\. Did you mean 'mean'\? Known: mean, sum, "):
            strategy.reduce(own, reduce_op="meen")

    def test_gradients_are_those_of_all_workers(self, strategy: Strategy) -> None:
        module = trained(strategy)
        step = strategy.training_step(module)
        for count in (1, 2):
            module.zero_grad()
            step(batch_of(strategy.rank, count), 0).backward()
            self._check_close(gradients(module), over_all(strategy, module, count))

    def test_gradients_wait_for_the_last_batch_of_an_accumulation(self, strategy: Strategy) -> None:
        module = trained(strategy)
        step = strategy.training_step(module)
        with strategy.no_sync(step):
            step(batch_of(strategy.rank, 1), 0).backward()
            self._check_close(gradients(module), own_of(module, strategy.rank, 1))
        step(batch_of(strategy.rank, 2), 1).backward()
        both = zip(over_all(strategy, module, 1), over_all(strategy, module, 2), strict=True)
        self._check_close(gradients(module), [one + other for one, other in both])

    def test_a_run_ends_with_the_weights_of_one_worker(self, strategy: Strategy) -> None:
        self._check_run(strategy, Mlp)

    def test_so_does_one_that_is_optimized_by_hand(self, strategy: Strategy) -> None:
        self._check_run(strategy, ByHand)

    def test_so_does_one_that_accumulates(self, strategy: Strategy) -> None:
        self._check_run(strategy, Mlp, accumulate_grad_batches=2)

    def _check_run(self, strategy: Strategy, cls: type[Mlp], **options: Any) -> None:
        modules = []
        for own, workers in ((strategy, strategy.world_size), (Strategy(), 1)):
            torch.manual_seed(0)
            modules.append(cls())
            trainer = bare_trainer(max_epochs=2, gradient_clip_val=None, **options)
            data = Loaders(DataLoader(rows(0, 128), 32 // workers), DataLoader(rows(1400, 1437), 8))
            loops.fit(trainer, modules[-1], data, None, own)
        assert trainer.strategy.world_size == 1
        self._check_close(list(modules[0].parameters()), list(modules[1].parameters()))
        everybody = strategy.gather([parameter.double().sum().item() for parameter in modules[0].parameters()])
        assert everybody == [everybody[0]] * strategy.world_size

    def _check_close(self, found: Gradients, want: Gradients) -> None:
        for one, other in zip(found, want, strict=True):
            torch.testing.assert_close(one, other, rtol=self.tolerance, atol=self.tolerance / 100)

    def test_it_travels_to_workers(self, strategy: Strategy) -> None:
        again = pickle.loads(pickle.dumps(strategy))  # noqa: S301 -- our own
        assert (type(again), again.rank, again.world_size) == (type(strategy), strategy.rank, strategy.world_size)


def trained(strategy: Strategy) -> Any:
    """The same module on each worker, as the strategy trains it."""
    torch.manual_seed(0)
    module = Mlp()
    return strategy.setup(module)


def batch_of(rank: int, number: int) -> Any:
    """A worker's batch with this number: no two have the same rows."""
    start = 100 * number + 8 * rank
    return rows(start, start + 8).tensors


def own_of(module: nn.Module, rank: int, number: int) -> Gradients:
    """The gradients that a worker's batch has by itself."""
    alone = copy.deepcopy(module)
    alone.zero_grad()
    alone.training_step(batch_of(rank, number), 0).backward()  # type: ignore[operator]
    return gradients(alone)


def over_all(strategy: Strategy, module: nn.Module, number: int) -> Gradients:
    """The mean of all workers' gradients."""
    each = [own_of(module, rank, number) for rank in range(strategy.world_size)]
    return [torch.stack(parts).mean(0) for parts in zip(*each, strict=True)]


def gradients(module: nn.Module) -> Gradients:
    """The gradients of all parameters."""
    return [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
