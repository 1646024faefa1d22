"""A plain PyTorch loop with the Trainer's launch, store, checkpoints and resume, and without a Module.

Example::

    def train(loop):
        net = Net()
        optimizer = torch.optim.Adam(net.parameters())
        net, optimizer, loader = loop.prepare(net, optimizer, DataLoader(rows, 32, shuffle=True))
        for epoch in loop.epochs(10):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                optimizer.step()
                loop.log({"loss": loss})
            loop.save()

    sl.Trainer(workers=2).run(train)

`Trainer.run(train, ckpt_path="last")` goes on from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from shipline.checkpoint import Checkpoint, CheckpointManifest
from shipline.errors import ConfigError
from shipline.store import Store, open_store
from shipline.store.commit import discard
from shipline.train.accelerators.devices import to_device
from shipline.train.checkpoints.restore import read_state
from shipline.train.checkpoints.weights import split_tied
from shipline.train.data import Feed, any_feed
from shipline.train.data.sharding import shard
from shipline.train.distributed.watchdog import watched
from shipline.train.loops.logging import log_values
from shipline.train.metrics import finite_or_none
from shipline.train.run import CHECKPOINTS
from shipline.train.seed import rng_state, set_rng_state
from shipline.train.stage import end_records
from shipline.train.strategies import Strategy

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer


class Loop:
    """What a function that `Trainer.run` runs is given."""

    def __init__(self, trainer: Trainer, resume: Checkpoint | None) -> None:
        self._trainer = trainer
        self._progress = trainer.progress
        self._modules: list[nn.Module] = []
        self._stateful: list[Any] = []
        self._loaders: list[Loader] = []
        self._resume = resume
        self._state = None if resume is None else read_state(resume)
        self._saved: str | None = None
        self._read: set[str] = set()  # names of checkpoints before it that somebody was reading
        self._in_epoch = False
        #: The step after which workers may have asked each other whether they were told to end.
        self._asked_at: int | None = None

    @property
    def device(self) -> torch.device:
        """The device of this worker."""
        return self._trainer.device

    @property
    def rank(self) -> int:
        """The number of this worker, from 0."""
        return self._trainer.global_rank

    @property
    def world_size(self) -> int:
        """The number of workers."""
        return self._trainer.world_size

    @property
    def strategy(self) -> Strategy:
        """How the workers talk to each other: `barrier`, `gather`, `broadcast`, `reduce`."""
        return self._trainer.strategy

    @property
    def global_step(self) -> int:
        """How many steps the optimizers have made."""
        return self._progress.global_step

    def prepare(self, *objects: Any) -> Any:
        """Return the objects as this worker uses them; with their states, where a run is resumed.

        Modules go to the device, and their gradients are exchanged between workers; loaders give this worker's share,
        on the device, and know their position; optimizers, schedulers and whatever else has `state_dict` and
        `load_state_dict` are kept in checkpoints. Call it once, with all of them.

        Raises:
            ConfigError: the checkpoint was made with other objects.
        """
        prepared = [self._prepared(item) for item in objects]
        if self._resume is not None and self._state is not None:
            self._restore(self._resume, self._state)
        return prepared[0] if len(prepared) == 1 else tuple(prepared)

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the numbers of the epochs up to `count` that are left; a resumed one goes on in its middle."""
        progress, state = self._progress, self._state
        if state is not None:
            own = state["workers"][min(self.rank, len(state["workers"]) - 1)]
            for loader, saved in zip(self._loaders, own["loaders"], strict=True):
                loader.feed.load_state_dict(saved)
            set_rng_state(own["rng"])
        while progress.epochs_done < count:
            progress.current_epoch = progress.epochs_done
            for loader in self._loaders:
                loader.feed.set_epoch(progress.current_epoch)
            self._in_epoch = True
            yield progress.current_epoch
            self._in_epoch = False
            for loader in self._loaders:
                loader.feed.end_epoch()
            progress.epochs_done += 1

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Give the loggers metrics of a step, by default the optimizers' last one; the first worker's count."""
        values = {
            name: float(value.detach() if isinstance(value, torch.Tensor) else value) for name, value in metrics.items()
        }
        self._trainer.reduced_metrics.update({k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()})
        log_values(self._trainer, values, max(0, self.global_step - 1) if step is None else step)

    def save(self) -> None:
        """Commit all that was prepared, and where the loop stands, in the background; the checkpoint before goes.

        Saved while a loader gives batches, a resumed loop goes on with the next one; saved when all have come to their
        end, with the next epoch. Every worker calls it.
        """
        trainer, progress = self._trainer, self._progress.state_dict()
        if self._in_epoch and all(loader.feed.at_end for loader in self._loaders):
            progress["epochs_done"] += 1
            for loader in self._loaders:
                loader.feed.end_epoch()
        everybody = trainer.strategy.gather(
            {"rng": rng_state(), "loaders": [loader.feed.state_dict() for loader in self._loaders]}
        )
        if not trainer.is_global_zero or trainer.run_directory is None:
            return
        tensors, tied = split_tied(self._weights())
        state = {
            "progress": progress,
            "stateful": [item.state_dict() for item in self._stateful],
            "loggers": [each.state_dict() for each in trainer.loggers],
            "workers": everybody,
        }
        name = f"epoch={self._progress.current_epoch}-step={self.global_step}-{self._progress.all_batches}"
        store = open_store(trainer.run_directory.store.url).at(CHECKPOINTS)
        old, self._saved = self._saved, name
        trainer.saver.save(
            store.at(name),
            tensors,
            state,
            self._manifest(tied),
            first=[each.save for each in trainer.loggers],
            replace=True,
            then=partial(self._after, store, name, None if old == name else old),
        )

    def _after(self, store: Store, name: str, old: str | None) -> None:
        """When a checkpoint is committed: point at it, and delete the one before, and what was being read until now."""
        assert self._trainer.run_directory is not None
        self._trainer.run_directory.point("last", name)
        gone = {*self._read, *([] if old is None else [old])} - {name}
        self._read = {each for each in gone if not discard(store, each)}

    def open_loggers(self) -> None:
        """Begin the records, or go on with them."""
        trainer = self._trainer
        store = None if trainer.run_directory is None else trainer.run_directory.store
        for each, saved in zip(trainer.loggers, (self._state or {}).get("loggers", ()), strict=False):
            each.load_state_dict(saved)
        for each in trainer.loggers:
            each.open(store, None if self._state is None else self._state["progress"]["global_step"])

    def _manifest(self, tied: dict[str, str]) -> CheckpointManifest:
        kind = type(self._modules[0]) if self._modules else nn.Module
        return CheckpointManifest(
            module=f"{kind.__module__}.{kind.__qualname__}",
            tied_weights=tied,
            epoch=self._progress.current_epoch,
            global_step=self.global_step,
            metrics=finite_or_none(dict(self._trainer.reduced_metrics)),
            lineage=self._trainer.lineage,
        )

    def _weights(self) -> dict[str, Any]:
        """The weights of the module; of several, each under its number."""
        if len(self._modules) == 1:
            return self._modules[0].state_dict()
        states = enumerate(module.state_dict() for module in self._modules)
        return {f"{number}.{name}": tensor for number, state in states for name, tensor in state.items()}

    def _prepared(self, item: Any) -> Any:
        if isinstance(item, nn.Module):
            self._modules.append(item.to(self.device))
            trains = any(parameter.requires_grad for parameter in item.parameters())
            return DistributedDataParallel(item) if trains and self.world_size > 1 else item
        if hasattr(item, "state_dict") and not hasattr(item, "__iter__"):
            if isinstance(item, Optimizer):
                item.register_step_post_hook(lambda *_: self._progress.count_step())
            self._stateful.append(item)
            return item
        if not hasattr(item, "__iter__"):
            raise ConfigError(
                f"prepare was given a {type(item).__name__}, which is no module, no loader, and has no state_dict: use "
                "it as it is."
            )
        self._loaders.append(Loader(self, item))
        return self._loaders[-1]

    def _restore(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        weights = checkpoint.weights(safetensors.torch.load)
        several = len(self._modules) != 1
        try:
            for number, module in enumerate(self._modules):
                start = f"{number}." if several else ""
                own = {name.removeprefix(start): t for name, t in weights.items() if name.startswith(start)}
                module.load_state_dict(own)
            for item, saved in zip(self._stateful, state["stateful"], strict=True):
                item.load_state_dict(saved)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{checkpoint} was made with other objects than prepare was given: {error}. Give the same, in the same "
                "order."
            ) from error
        self._progress.load_state_dict(state["progress"])

    def heed_signals(self) -> None:
        """Between two batches: where the process was told to end, save and end it.

        Several workers ask each other only after steps of the optimizers, which all make alike: what one does alone,
        such as a validation on the first, must not wait for the others.
        """
        trainer = self._trainer
        if self.world_size > 1 and self.global_step == self._asked_at:
            return
        position = self.global_step if self.world_size > 1 else self._progress.all_batches
        if self._asked_at is None:
            trainer.begin_asking(position)
        self._asked_at = self.global_step
        if trainer.is_told_to_end(position):
            self.save()
            trainer.saver.writer.wait()
            trainer.strategy.barrier()  # nobody ends, and nobody is started again, before it is committed
            trainer.check_signals()


class Loader:
    """A loader whose batches are on the device, and whose position is kept."""

    def __init__(self, loop: Loop, loader: Any) -> None:
        self._loop = loop
        self.feed: Feed = any_feed(shard(loader, loop.rank, loop.world_size, strategy=loop.strategy))

    def __len__(self) -> int:
        return len(self.feed)

    def __iter__(self) -> Iterator[Any]:
        device, progress = self._loop.device, self._loop._progress  # noqa: SLF001 -- its own
        for batch in self.feed.each():
            self._loop._trainer.clock.mark("batch", progress.all_batches)  # noqa: SLF001
            yield batch if device.type == "cpu" else to_device(batch, device)
            progress.all_batches += 1
            self._loop.heed_signals()
        self._loop._trainer.clock.rest()  # noqa: SLF001 -- what the function does between its loaders may take any time


def run_function(
    trainer: Trainer, function: Callable[[Loop], Any], resume: Checkpoint | None, strategy: Strategy | None
) -> Any:
    """Run the function on this worker; return what it returns."""
    trainer.join_device(strategy)
    loop = Loop(trainer, resume)
    failure: BaseException | None = None
    with trainer.signals.handled(trainer.requeue_signal):
        try:
            if trainer.is_global_zero:
                trainer.records.begin(trainer, {}, resumed=resume is not None)
                loop.open_loggers()
            with watched(trainer):
                found = function(loop)
            trainer.saver.writer.wait()
            trainer.strategy.barrier()  # what the first worker has written, all may read
            return found
        except BaseException as error:
            failure = error
            raise
        finally:
            with contextlib.ExitStack() as todo:
                if trainer.is_global_zero:
                    end_records(trainer, todo, failure)
                todo.callback(trainer.saver.writer.close)
