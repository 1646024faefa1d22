"""What a Trainer works with while a stage runs: its state, and the decisions that loops leave to it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from shipline.errors import ConfigError
from shipline.lineage import Lineage
from shipline.plugins import load
from shipline.train.accelerators import pick_accelerator
from shipline.train.checkpoints.saver import Saver
from shipline.train.compiling import Compiler, as_it_is, compiler_of, uncompiled
from shipline.train.distributed import first_does
from shipline.train.distributed.watchdog import Clock
from shipline.train.hooks import Hooks
from shipline.train.lightning import attach
from shipline.train.loops.fit_data import FitData
from shipline.train.loops.progress import Progress
from shipline.train.metrics import MetricLog
from shipline.train.metrics.objects import metric_states
from shipline.train.options.described import Description
from shipline.train.records import Background, Code, Records
from shipline.train.seed import rng_state
from shipline.train.settings import Settings
from shipline.train.signals import Signals, ending, told
from shipline.train.strategies import Strategy, waiting
from shipline.train.utilities.rank_zero import rank_zero_info
from shipline.train.view import State, TrainerView

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from shipline.train.callbacks import Callback
    from shipline.train.data import DataModule
    from shipline.train.loops.evaluation import Name, Source
    from shipline.train.loops.loss import LossCheck
    from shipline.train.loops.schedules import Schedule
    from shipline.train.module import Module
    from shipline.train.precision import Precision
    from shipline.train.run import RunDirectory
    from shipline.train.stage import Stage
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

ASKS_EVERY_S = 1.0

_STAYS = frozenset({
    "saver", "fit_data", "hooks", "module", "data", "step", "loss_check", "optimizers", "loop_optimizers", "schedules",
    "sources", "strategy", "accelerator", "precision_plugin", "metrics", "signals", "predictions",
    "compiled", "uncompiled", "compiled_as", "records", "clock", "on_hang",
})  # fmt: skip


class Runtime(Settings, TrainerView):
    """The state of a Trainer."""

    module: Module
    data: DataModule
    hooks: Hooks
    precision_plugin: Precision
    loss_check: LossCheck
    #: Runs a training step, inside what the strategy puts around it.
    step: Any
    #: Returns a step compiled, or as it is.
    compiled: Compiler
    #: Returns what runs a function uncompiled within a compiled step.
    uncompiled: Compiler
    #: What `torch.compile` compiled the module with that was given last, if it was compiled.
    compiled_as: Compiler | None = None

    def reset(self) -> None:
        """Forget the run before."""
        self.strategy: Strategy = Strategy()
        if (group := self.started_by) is not None:  # until they meet, each knows at least its place
            self.strategy = waiting(group)
        self.device = torch.device("cpu")
        self.metrics = MetricLog()
        self.reduced_metrics: dict[str, torch.Tensor] = {}
        self.logged_metrics: dict[str, float] = {}
        self.epoch_progress: dict[str, float] = {}
        self.progress = Progress()
        self.should_stop = False
        self.sanity_checking = False
        self.evaluation: Name | None = None
        self.state = State()
        #: URL of the checkpoint that the stage goes on from, or has its weights from.
        self.ckpt_path: str | None = None
        self.run_directory: RunDirectory | None = None
        self.lineage_so_far = Lineage()
        self.description = Description()
        self.code = Background.known(Code())
        self.records = Records()
        self.optimizers: list[Optimizer] = []
        self.loop_optimizers: list[Any] = []
        self.schedules: list[Schedule] = []
        self.sources: list[Source] = []
        self.predictions: list[list[Any]] | None = None
        self.fit_data = FitData(self.trainer)
        self.saver = Saver()
        self.signals = Signals()
        #: Is told when a step begins.
        self.clock = Clock()
        #: What ends this worker where a step hangs; None: the end of its process.
        self.on_hang: Callable[[str], None] | None = None
        #: What this worker goes on with, until training begins: of loaders, generators, metrics.
        self.resumed: dict[str, Any] | None = None
        #: What `interruptible_state` returned before the validation that runs.
        self.before_validation: dict[str, Any] | None = None
        self._entries: list[dict[str, Any]] | None = None
        self._stop_agreed = False
        # When the workers asked each other last whether one was told to end, and when they will next, in batches.
        self._asked, self._asked_at, self._asks_at = 0.0, 0, 1

    def __getstate__(self) -> dict[str, Any]:
        """What travels to a worker: settings and records; it begins with nothing run yet."""
        return {name: value for name, value in self.__dict__.items() if name not in _STAYS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.reset()
        self.__dict__.update(state)

    @property
    def trainer(self) -> Trainer:
        """This object."""
        return self  # type: ignore[return-value]

    @property
    def lineage(self) -> Lineage:
        """Which code, data and settings the run is made of; waits for git, which is asked in the background."""
        return self.lineage_so_far.model_copy(update=self.code.result().lineage)

    @lineage.setter
    def lineage(self, lineage: Lineage) -> None:
        self.lineage_so_far = lineage

    # ---- joining a stage ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def joined(self, module: Module, data: DataModule, stage: Stage, strategy: Strategy | None) -> Iterator[None]:
        """Join module, data, strategy, precision and profiler for a stage."""
        self.join_device(strategy)
        self.precision_plugin = self._make_precision()
        self.compiled = compiler_of(self.compile, self.compiled_as)
        self.uncompiled = as_it_is if self.compiled is as_it_is else uncompiled
        self.data = data
        data.adopted.trainer = self
        self.state = State(stage, "train" if stage == "fit" else stage, "running")
        self.module = module
        self.metrics.module = module
        attach(module, self.trainer)
        self.hooks = Hooks(self.trainer, module, self.callbacks, data, self.profiler)
        try:
            store = None if self.run_directory is None else self.run_directory.store
            self.profiler.setup(stage, store, self.strategy.rank, module)
            yield
            self.state.status = "finished"
        except BaseException as error:
            self.state.status = "failed" if isinstance(error, Exception) else "interrupted"
            raise
        finally:
            self.state.fn = self.state.stage = None
            self.before_validation = None

    def join_device(self, strategy: Strategy | None) -> None:
        """Take this worker's place among the others, and its device."""
        self.strategy = Strategy() if strategy is None else strategy
        self.accelerator = pick_accelerator(self._accelerator)
        self.device = self._own_device()
        self.accelerator.setup_device(self.device)
        self.strategy.root_device = self.device

    def move_module(self) -> None:
        """Bring the module, all of whose layers are made, to its precision and to the device."""
        self._check_callbacks()
        self.precision_plugin.convert_module(self.module)
        self.strategy.place(self.module)
        if self.sync_batchnorm and self.strategy.world_size > 1:
            if self.device.type == "cpu":
                raise ConfigError(
                    "Trainer has sync_batchnorm=True, which PyTorch can do on accelerators only, and this is the CPU: "
                    "leave it out here, or use group or layer norm."
                )
            self.module = nn.SyncBatchNorm.convert_sync_batchnorm(self.module)  # type: ignore[no-untyped-call]
        self.module = self.strategy.setup(self.module)

    def _check_callbacks(self) -> None:
        """Refuse what would need weights in one piece where there are none."""
        # Lightning's callbacks, which run here as they are, do not say: those that need them fail of themselves.
        needing = [type(each).__name__ for each in self.callbacks if getattr(each, "needs_whole_weights", False)]
        if needing and self.strategy.shards_weights:
            raise ConfigError(
                f"{', '.join(needing)} needs the weights in one piece, and with the strategy "
                f"{type(self.strategy).__name__} each worker holds a part of them: leave it out, or take 'ddp' or "
                "'zero1'."
            )

    def _own_device(self) -> torch.device:
        """The device of this worker: of those that were named, or of all."""
        numbers, have = self.device_numbers, self.accelerator.device_count()
        rank = self.strategy.local_rank
        device = self.accelerator.device(rank if numbers is None else numbers[rank % len(numbers)])
        if numbers is not None and device.index is not None and not all(0 <= number < have for number in numbers):
            raise ConfigError(
                f"Trainer has devices={numbers}, and this machine has {have} of {self.accelerator.name!r}: choose from "
                f"0 to {have - 1}."
            )
        return device

    def _make_precision(self) -> Precision:
        own = self.precision_setting
        if own is None:
            made: Precision = load("precision", self.precision)(self.precision, self.device)
            return made
        if own.device.type != self.device.type:
            raise ConfigError(
                f"The precision {own.name!r} was made for {own.device}, and this run computes on {self.device}: give "
                f"it torch.device({self.device.type!r}), or set accelerator."
            )
        return own

    # ---- when to stop ------------------------------------------------------------------------------------------------

    def may_stop(self) -> bool:
        """Whether `min_epochs` and `min_steps` are reached."""
        progress = self.progress
        return progress.epochs_done >= self.min_epochs and progress.global_step >= self.min_steps

    def agree(self) -> None:
        """Let all workers know what one was asked: they must end together, or those left would wait for ever.

        All call it at the same points.
        """
        if self.strategy.world_size == 1:
            return
        wishes = self.strategy.gather((self.should_stop, self.signals.look()))
        self.should_stop = self._stop_agreed = any(stop for stop, _ in wishes)
        self.signals.agreed = told([number for _, number in wishes])

    def begin_asking(self, position: int) -> None:
        """Count from here, as training begins, when workers ask each other next; see `is_told_to_end`."""
        self._asked, self._asked_at = time.monotonic(), position
        self._asks_at = self._asked_at + 1

    def is_told_to_end(self, position: int) -> bool:
        """Whether the process was told to end, after a batch; workers ask each other about once a second.

        When they do so next they agree on, since all must do it after the same batch.

        Args:
            position: how many batches, or steps, there have been, the same on all workers.
        """
        if self.strategy.world_size == 1 and self.signals.ask is None:
            return self.signals.received is not None
        if position < self._asks_at:
            return False
        now = time.monotonic()
        heard = self.strategy.gather((self.signals.look(), now - self._asked))
        self.signals.agreed = told([number for number, _ in heard])
        if self.strategy.world_size == 1:
            self.signals.received = self.signals.agreed
        each = max(seconds for _, seconds in heard) / max(1, position - self._asked_at)
        wait = min(int(ASKS_EVERY_S / max(each, 1e-6)), 2 * (position - self._asked_at))
        self._asked, self._asked_at = now, position
        self._asks_at = position + max(1, wait)
        return self.signals.agreed is not None

    def stops_now(self) -> bool:
        """Whether somebody has asked to stop, all know it, and it is allowed."""
        agreed = self._stop_agreed or self.strategy.world_size == 1
        return self.should_stop and agreed and self.may_stop()

    def check_signals(self) -> None:
        """Where the process was told to end, save and end it.

        Raises:
            SystemExit: 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1; on a terminal, Ctrl-C is a
                KeyboardInterrupt.
        """
        number = self.signals.received if self.strategy.world_size == 1 else self.signals.agreed
        if number is None or self.sanity_checking:  # nothing has been trained yet
            return
        if self.state.fn == "fit" and (keeper := self.checkpoint_callback) is not None:
            keeper.save_interrupted(self.trainer)
        if number == self.requeue_signal:
            self._requeue()
        raise ending(number)

    @property
    def requeue_signal(self) -> int | None:
        """The signal that asks to give this job back to its queue; None where there is none."""
        return None if self.environment is None else self.environment.requeue_signal

    def _requeue(self) -> None:
        """Give the job back to its queue, if it can go on from what is saved."""
        assert self.environment is not None
        keeper = self.checkpoint_callback
        if self.state.fn == "fit" and (keeper is None or not keeper.last_model_path):
            logger.warning("The job's time is over and no checkpoint is kept: it does not go back to its queue.")
            return
        if self.state.fn in ("fit", None):  # None: a loop of the user's own, which has saved itself
            self.saver.writer.wait()
            first_does(self.environment.requeue)
            rank_zero_info("Saved; job %s goes back to its queue.", self.environment.job)

    def logs_this_step(self) -> bool:
        """Whether loggers get what this training step logs."""
        every = self.log_every_n_steps
        return bool(every) and ((self.progress.stepped_batches + 1) % every == 0 or self.should_stop)

    # ---- what a checkpoint holds -------------------------------------------------------------------------------------

    def interruptible_state(self) -> dict[str, Any]:
        """Return what a validation changes before it counts: of generators, metrics, and its loaders."""
        return {
            "rng": rng_state(),
            "metric_states": metric_states(self.module),
            "validation_feeds": self.fit_data.validation_states(),
        }

    def callbacks_by_key(self) -> dict[str, Callback]:
        """Return the callbacks that have a state, by its name."""
        return {callback.state_key: callback for callback in self.callbacks if callback.state_dict()}

    def holds_gradients(self) -> bool:
        """Whether gradients are there that a later step will use."""
        if not self.module.automatic_optimization:
            return True
        progress = self.progress
        return not progress.last and progress.batches % self.accumulate_grad_batches != 0

    def restore_metrics(self, shown: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        """Take up what was logged before, and what the epoch had collected: here, or on workers that are no more."""
        self.reduced_metrics = {k: torch.tensor(v, dtype=torch.float64) for k, v in shown["callback"].items()}
        self.logged_metrics, self.epoch_progress = dict(shown["logged"]), dict(shown["shown"])
        self._entries = entries

    def resumed_entries(self) -> dict[str, Any] | None:
        """Return the metrics that a resumed epoch goes on with; None in every other."""
        state, self._entries = self._entries, None
        return None if state is None or self.progress.phase == "begin" else self.metrics.entries_from(state)

    def forget_metrics(self) -> None:
        """Forget all that was logged."""
        self.reduced_metrics.clear()
        self.logged_metrics.clear()
        self.epoch_progress.clear()
        self.metrics.forget_steps()

    def end_validation(self) -> None:
        """Say that validation has counted: a checkpoint made from here on goes on after it."""
        self.before_validation = None
        if self.state.fn == "fit" and not self.sanity_checking:
            self.progress.phase = "validated"

    # ---- for people --------------------------------------------------------------------------------------------------

    def add_prediction(self, loader: int, batch_idx: int, outputs: Any) -> None:
        """Keep what was predicted, where it is to be returned."""
        if self.predictions is not None:
            self.predictions[loader].append(outputs)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first worker, above the progress bar where there is one."""
        if self.is_global_zero:
            bar = self.progress_bar_callback
            (print if bar is None else bar.print)(*args, **kwargs)

    def warn_of_evaluation_mode(self) -> None:
        """Training leaves every submodule in the mode in which it was given; say so where that may be a mistake."""
        frozen = [name or type(part).__name__ for name, part in self.module.named_modules() if not part.training]
        if frozen:
            logger.warning(
                "%d submodules are in evaluation mode as training begins (%s%s): without dropout, and with batch norm "
                "as it is. Call .train() on those that are to be trained.",
                len(frozen), ", ".join(frozen[:3]), " …" if len(frozen) > 3 else "",
            )  # fmt: skip
