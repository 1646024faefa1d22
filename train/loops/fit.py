"""The fit loop: epochs of batches, with validation where it is due. It reads top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from shipline.checkpoint import Checkpoint
from shipline.errors import TrainingError
from shipline.train import checkpoints
from shipline.train.loops import evaluation, schedules
from shipline.train.loops.fit_data import FitData
from shipline.train.loops.logging import collecting, log_step, log_values, reduced
from shipline.train.loops.loss import LossCheck
from shipline.train.loops.optimization import check_optimization, optimization
from shipline.train.loops.optimizer import LoopOptimizer
from shipline.train.loops.schedules import Schedule, parse_optimizers
from shipline.train.seed import isolate_rng, set_rng_state
from shipline.train.stage import begin_records, prepared

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from shipline.train.data import DataModule
    from shipline.train.module import Module
    from shipline.train.strategies import Strategy
    from shipline.train.trainer import Trainer


def fit(
    trainer: Trainer, module: Module, data: DataModule, resume: Checkpoint | None, strategy: Strategy | None = None
) -> None:
    """Train on this worker, from the beginning or from where the checkpoint was made."""
    with prepared(trainer, module, data, "fit", strategy):
        trainer.fit_data = FitData(trainer)
        make_optimizers(trainer)
        if resume is not None:
            checkpoints.restore(trainer, resume)
        begin_records(trainer, resume)
        trainer.hooks("on_fit_start")
        if resume is None:
            _check_sanity(trainer)
        FitLoop(trainer).run()
        trainer.hooks("on_fit_end")


def make_optimizers(trainer: Trainer) -> None:
    """Take the optimizers and schedules from the module, and what goes with them."""
    module = trainer.module
    returned = trainer.hooks.method("configure_optimizers")()
    trainer.optimizers, trainer.schedules = parse_optimizers(returned, module.automatic_optimization)
    check_optimization(module, trainer.optimizers, trainer)
    schedulers = [schedule.scheduler for schedule in trainer.schedules]
    trainer.optimizers = trainer.strategy.setup_optimizers(trainer.optimizers, schedulers)
    trainer.loss_check = LossCheck(trainer)
    trainer.loop_optimizers = [for_steps(trainer, optimizer) for optimizer in trainer.optimizers]


def for_steps(trainer: Trainer, optimizer: Optimizer) -> LoopOptimizer:
    """Return what a training step gets as its optimizer: in manual optimization its steps are counted."""
    look = partial(trainer.hooks, "on_before_optimizer_step", optimizer)
    count = None if trainer.module.automatic_optimization else trainer.progress.count_step
    return LoopOptimizer(optimizer, trainer, look, count)


def _check_sanity(trainer: Trainer) -> None:
    """Try a few validation batches, so that a mistake there shows now and not after the first epoch."""
    steps = trainer.num_sanity_val_steps
    if steps == 0 or not trainer.fit_data.has_validation:
        return
    trainer.sanity_checking = True
    with isolate_rng():
        trainer.hooks("on_sanity_check_start")
        trainer.sources = trainer.fit_data.validation
        evaluation.run(trainer, "validation", inference_mode=False, most=None if steps == -1 else steps)
        trainer.forget_metrics()
        trainer.hooks("on_sanity_check_end")
    trainer.sanity_checking = False


class FitLoop:
    """Trains epoch by epoch. Where it stands is in `trainer.progress`, so that a resumed run begins in the middle."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._progress = trainer.progress
        self._data = trainer.fit_data
        self._validated_at = 0.0
        self._validated = self._validates = False

    def run(self) -> None:
        """Train until it is time to stop."""
        trainer, progress = self._trainer, self._progress
        if trainer.limit_train_batches == 0 or self._done():
            return
        trainer.clock.mark("start of training")
        self._begin()
        train_epoch = trainer.hooks.profiled("run_training_epoch", self._train_epoch)
        while not self._done():
            with trainer.metrics.stage("train", trainer.resumed_entries()):
                train_epoch()
                self._end_epoch()
        progress.current_epoch = progress.epochs_done
        trainer.clock.rest()
        trainer.saver.writer.wait()
        trainer.strategy.barrier()  # what the first worker has written, all may read
        trainer.hooks("on_train_end")

    def _begin(self) -> None:
        trainer, hooks = self._trainer, self._trainer.hooks
        self._data.load()
        self._validates = self._data.has_validation
        trainer.warn_of_evaluation_mode()
        with collecting(trainer, "train"):
            hooks("on_train_start")
            logged = reduced(trainer).logged
        log_values(trainer, logged)
        trainer.step = trainer.strategy.training_step(trainer.module)
        step = trainer.precision_plugin.wrap_step(trainer.compiled(trainer.step))
        step = hooks.profiled(f"[Module]{type(trainer.module).__name__}.training_step", step)
        self._run_batch = hooks.profiled("run_training_batch", optimization(trainer, step))
        self._transfer = hooks.transfer(trainer.data)
        self._validated_at = time.monotonic()
        if (resumed := trainer.resumed) is not None:
            self._data.load_states(resumed["train_feed"], resumed["validation_feeds"], resumed["share"])
            if resumed["rng"] is not None:
                set_rng_state(resumed["rng"])
            trainer.resumed = None
        trainer.agree()  # on what a callback's state has asked for: the run may have been stopped before
        trainer.begin_asking(self._progress.all_batches)

    def _train_epoch(self) -> None:
        """One pass over the training data, or what is left of it in a resumed run."""
        progress, phase = self._progress, self._progress.phase
        if phase == "end":
            return
        if phase == "begin":
            progress.begin_epoch()
            self._data.renew()
            self._trainer.hooks("on_train_epoch_start")
        self._data.feed.set_epoch(progress.current_epoch)
        if phase in ("batch", "validated") and self._after_batch(validated=phase == "validated"):
            return
        if not progress.last:
            self._train_batches()

    def _train_batches(self) -> None:
        trainer, progress, metrics = self._trainer, self._progress, self._trainer.metrics
        before_batch, after_batch = trainer.hooks.of("on_train_batch_start"), trainer.hooks.of("on_train_batch_end")
        monitors = trainer.hooks.late("on_train_batch_end")
        run_batch, transfer, per_step = self._run_batch, self._transfer, self._schedules("step")
        mark = trainer.clock.mark
        fetched = False
        for batch, last in self._batches():
            fetched, batch_idx, progress.begun_last = True, progress.batches, last
            mark("training batch", batch_idx)
            if transfer is not None:
                batch = transfer(batch, 0)  # noqa: PLW2901
            metrics.begin_batch(batch)
            if -1 in [hook(batch, batch_idx) for hook in before_batch]:
                progress.last = True
                self._step_schedules(per_step, batch_idx, plateau=False)
                self._step_schedules(self._schedules("epoch"), progress.current_epoch, plateau=False)
                break
            outputs = run_batch(batch, batch_idx, last)
            progress.count_batch(last)
            stepped = last or progress.batches % trainer.accumulate_grad_batches == 0
            if per_step and stepped:
                self._step_schedules(per_step, batch_idx, plateau=False)
            if last:
                self._step_schedules(self._schedules("epoch"), progress.current_epoch, plateau=False)
            for hook in after_batch:
                hook(outputs, batch, batch_idx)
            if stepped and trainer.logs_this_step():
                self._log_step()
            for hook in monitors:
                hook(outputs, batch, batch_idx)
            if self._after_batch():
                break
        else:
            self._end_short(fetched)
        metrics.end_batch()

    def _batches(self) -> Iterator[tuple[Any, bool]]:
        trainer, progress = self._trainer, self._progress
        most = None
        if trainer.max_steps != -1 and trainer.module.automatic_optimization:
            most = progress.batches + (trainer.max_steps - progress.global_step) * trainer.accumulate_grad_batches
        batches = self._data.feed.batches(self._data.batches, most)
        return trainer.profiler.profile_iterable(batches, "train_dataloader_next")

    def _after_batch(self, validated: bool = False) -> bool:
        """Validate where that is due; say whether the epoch is to end here."""
        trainer, progress = self._trainer, self._progress
        if trainer.is_told_to_end(progress.all_batches):
            trainer.check_signals()
        if not validated and self._validates and self._data.validation_due(self._validated_at, time.monotonic()):
            self._validate()
        if progress.last or progress.batches % trainer.accumulate_grad_batches == 0:
            if trainer.schedules:
                self._step_schedules(self._schedules("step"), progress.batches - 1, plateau=True)
            progress.stepped_batches += 1
        progress.phase = "ready"
        if trainer.should_stop and trainer.stops_now():
            return True
        return progress.global_step >= trainer.max_steps != -1

    def _validate(self) -> None:
        trainer, progress = self._trainer, self._progress
        if progress.last or progress.batches % trainer.accumulate_grad_batches == 0:
            trainer.hooks.method("on_validation_model_zero_grad")()
        self._data.renew_validation()
        trainer.sources = self._data.validation
        if not trainer.sources:  # val_dataloader returned none after all
            self._validates = False
            return
        for source in trainer.sources:
            source.feed.set_epoch(progress.current_epoch)
        trainer.before_validation = trainer.interruptible_state()
        evaluation.run(trainer, "validation", inference_mode=False)
        self._validated, self._validated_at = True, time.monotonic()
        trainer.agree()

    def _end_short(self, fetched: bool) -> None:
        """The loader has ended: as it said it would, or earlier, which counts as the end of the epoch all the same."""
        progress = self._progress
        if progress.last:
            return
        if not fetched and not progress.batches:
            raise TrainingError(
                "The training loader has no batch: check the dataset, batch_size and drop_last. An iterator is used up "
                "after one epoch; give what can be iterated again."
            )
        progress.last = True
        self._step_schedules(self._schedules("epoch"), progress.current_epoch, plateau=False)
        if self._validates and self._trainer.val_check_interval == 1.0 and self._data.batches != progress.batches:
            self._validate()
            progress.phase = "ready"

    def _end_epoch(self) -> None:
        """Reduce the epoch's metrics, let everybody see it finished, and count it."""
        trainer, progress = self._trainer, self._progress
        trainer.clock.mark("end of epoch", progress.current_epoch)
        if progress.phase != "end":
            self._data.feed.end_epoch()
            progress.phase, progress.epochs_done = "end", progress.epochs_done + 1
            progress.stepped_batches -= 1  # what an epoch logs stands beside its last batch
            self._call_epoch_end()
        if progress.last:
            self._step_schedules(self._schedules("epoch"), progress.current_epoch, plateau=True)
        progress.stepped_batches += 1
        progress.phase = "begin"
        trainer.loss_check.look()
        trainer.saver.writer.check()
        trainer.agree()
        trainer.check_signals()

    def _call_epoch_end(self) -> None:
        trainer = self._trainer
        epoch = reduced(trainer, reset=False)
        with collecting(trainer, "train"):
            trainer.hooks("on_train_epoch_end")
            more = reduced(trainer).logged
        epoch.reset()
        log_values(trainer, epoch.logged | more)
        with collecting(trainer, "train"):  # those that monitor see what the others have logged just now
            for hook in trainer.hooks.late("on_train_epoch_end"):
                hook()
            logged = reduced(trainer).logged
        log_values(trainer, logged)

    def _log_step(self) -> None:
        log_step(self._trainer)
        self._trainer.loss_check.look()
        self._trainer.saver.writer.check()
        self._trainer.agree()

    def _done(self) -> bool:
        trainer, progress = self._trainer, self._progress
        if progress.phase != "begin":
            return False
        if trainer.max_steps != -1 and progress.global_step >= trainer.max_steps:
            return True
        if trainer.max_epochs not in (None, -1) and progress.epochs_done >= trainer.max_epochs:
            return True
        trainer.agree()
        return trainer.stops_now()

    def _schedules(self, interval: str) -> list[Schedule]:
        """Those that the loop steps; in manual optimization the module does."""
        automatic = self._trainer.module.automatic_optimization
        return [schedule for schedule in self._trainer.schedules if automatic and schedule.interval == interval]

    def _step_schedules(self, due: list[Schedule], index: int, *, plateau: bool) -> None:
        """Step those whose turn it is: with the batch, or after validation where they need its metric."""
        trainer = self._trainer
        for schedule in due:
            if schedule.reduce_on_plateau == plateau and (index + 1) % schedule.frequency == 0:
                metrics = trainer.callback_metrics if plateau else {}
                if plateau and schedule.monitor not in metrics and not self._validated and self._validates:
                    continue  # what it waits for comes with the first validation
                schedules.step(schedule, metrics, trainer.hooks.method("lr_scheduler_step"))
