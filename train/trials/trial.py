"""Steps beside a run: on its module, data and optimizers, after which the run goes on as if there had been none.

For those who must try something before they decide: which learning rate, which batch size.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shipline.train.data.generators import Generators
from shipline.train.hooks import Hooks
from shipline.train.loops.fit import FitLoop, for_steps
from shipline.train.loops.fit_data import FitData
from shipline.train.loops.loss import LossCheck
from shipline.train.profilers import PassThroughProfiler
from shipline.train.trials.snapshot import Snapshot

if TYPE_CHECKING:
    from shipline.train.callbacks.callback import Callback
    from shipline.train.trainer import Trainer

# What a run and the one beside it have in common; all else begins anew.
_COMMON = (
    "strategy", "device", "optimizers", "schedules", "sources", "evaluation", "accelerator", "precision_plugin",
    "module", "data", "lineage", "compiled", "uncompiled",
)  # fmt: skip


@contextlib.contextmanager
def beside(trainer: Trainer, callbacks: Sequence[Callback] = (), **settings: Any) -> Iterator[Trainer]:
    """Within it, another Trainer runs the module: it counts for itself, and neither logs, saves nor validates.

    Generators, those of the loaders too, and the DataModule are left as they were. What is done to the module stays.

    Args:
        trainer: whose stage runs.
        callbacks: the only ones that are called.
        settings: of the other Trainer, where they differ.
    """
    from shipline.train.lightning import attach  # which knows all callbacks, and some of them are made of this

    data = trainer.data.adopted
    attributes, own = Snapshot(data, tensors=False), trainer.data.state_dict()
    other = _another(trainer, callbacks, settings)
    with same_generators(trainer):
        attach(trainer.module, other)
        data.trainer = other
        try:
            yield other
        finally:
            attach(trainer.module, trainer)
            if own:
                trainer.data.load_state_dict(own)
            attributes.restore()


@contextlib.contextmanager
def same_generators(trainer: Trainer) -> Iterator[None]:
    """Leave all generators as they were, those that module, loaders and datasets own included."""
    generators = Generators(trainer.module, trainer.data.adopted, trainer.data)
    before = generators.state_dict()
    try:
        yield
    finally:
        generators.load_state_dict(before)


@contextlib.contextmanager
def trial(trainer: Trainer, callbacks: Sequence[Callback] = (), **settings: Any) -> Iterator[Trainer]:
    """The same, after which module, optimizers, schedulers and loaders are as they were, too."""
    owners = [*trainer.module.modules(), *trainer.optimizers, *(schedule.scheduler for schedule in trainer.schedules)]
    before, precision = Snapshot(*owners), trainer.precision_plugin.state_dict()
    try:
        with beside(trainer, callbacks, **settings) as other:
            yield other
    finally:
        before.restore()
        trainer.precision_plugin.load_state_dict(precision)
        if trainer.world_size > 1:
            gc.collect()  # what joined the workers' gradients would otherwise go on joining them


def train_steps(other: Trainer, steps: int) -> None:
    """Make so many optimizer steps on the Trainer of a trial, over as many epochs as that takes."""
    other.max_steps = other.global_step + steps
    start = other.fit_data.feed.state_dict()
    try:
        FitLoop(other).run()
    finally:
        other.fit_data.feed.load_state_dict(start)


def _another(trainer: Trainer, callbacks: Sequence[Callback], settings: dict[str, Any]) -> Trainer:
    other: Trainer = object.__new__(type(trainer))
    other.__dict__.update(trainer.__dict__)
    other.callbacks, other.loggers, other.profiler = list(callbacks), [], PassThroughProfiler()
    other.reset()
    for name in _COMMON:
        setattr(other, name, getattr(trainer, name))
    other.state = replace(trainer.state)
    other.progress = replace(trainer.progress, phase="begin", batches=0, last=False)
    other.max_epochs, other.max_steps, other.min_epochs, other.min_steps = -1, -1, 0, 0
    other.limit_val_batches = other.num_sanity_val_steps = other.log_every_n_steps = 0
    if trainer.module.automatic_optimization:
        other.schedules = []
    other.__dict__.update(settings)
    other.metrics.module = trainer.module
    other.hooks = Hooks(other, trainer.module, other.callbacks, trainer.data, other.profiler)
    other.fit_data = FitData(other)
    other.loss_check = LossCheck(other)
    other.loop_optimizers = [for_steps(other, optimizer) for optimizer in trainer.optimizers]
    return other
