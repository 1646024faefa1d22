"""When checkpoints of a run are made, which are kept, and what `best` and `last` mean."""

from __future__ import annotations

import logging
import math
import re
import time
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipline.errors import ConfigError, StoreError, nearest
from shipline.store import Store, absolute, join, open_store
from shipline.store.commit import MANIFEST, discard
from shipline.train import checkpoints
from shipline.train.callbacks.callback import Callback
from shipline.train.run import CHECKPOINTS, point

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

_FIELD = re.compile(r"\{([^{}:]+)(:[^{}]*)?\}")
_ODD = re.compile(r"[^A-Za-z0-9._=,+@-]")


class ModelCheckpoint(Callback):
    """Saves checkpoints, keeps the best ones, and points `best` and `last` at them.

    They are made at the end of every epoch, or of every validation where there are several in an epoch, unless one of
    the three intervals is set. They are written in the background; training waits only while tensors are copied.

    Args:
        dirpath: URL of a directory for the checkpoints; default: `checkpoints` in the run's directory.
        filename: template of a checkpoint's name, such as "{epoch}-{val_acc:.3f}".
        monitor: the logged metric that decides which is best; default: the newest is.
        verbose: log which checkpoint was made.
        save_last: keep the newest one too, so that a run can always be resumed where it ended.
        save_top_k: how many of the best to keep; -1 keeps all.
        save_weights_only: leave out what only a resumed run needs.
        mode: "min" or "max" of that metric is best.
        auto_insert_metric_name: write `epoch=3`, not `3`, into the name.
        every_n_train_steps: save after every n-th optimizer step.
        train_time_interval: save when so much time has passed.
        every_n_epochs: save in every n-th epoch only.
        save_on_train_epoch_end: save at the end of epochs, not of validations; default: as above.
        enable_version_counter: give a checkpoint whose name is taken another one, instead of replacing it.
        save_on_exception: save when the run fails, too; the batch that failed comes first when it is resumed.
    """

    monitors = True
    saves = True

    def __init__(
        self,
        dirpath: str | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = True,
        save_top_k: int = 1,
        save_weights_only: bool = False,
        mode: Literal["min", "max"] = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        save_on_exception: bool = False,
    ) -> None:
        self._given = None if dirpath is None else absolute(str(dirpath))
        self.dirpath = self._given
        self.filename = filename or "{epoch}-{step}"
        self.monitor = monitor
        self.verbose = verbose
        self.save_last = True if save_last is None else bool(save_last)
        self.save_top_k = save_top_k
        self.save_weights_only = save_weights_only
        self.mode: Literal["min", "max"] = mode
        self.auto_insert_metric_name = auto_insert_metric_name
        self.every_n_train_steps = every_n_train_steps
        self.train_time_interval = train_time_interval
        self.every_n_epochs = every_n_epochs
        self.save_on_train_epoch_end = save_on_train_epoch_end
        self.enable_version_counter = enable_version_counter
        self.save_on_exception = save_on_exception
        self._check()
        self._begin()

    def _check(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigError(f"ModelCheckpoint has mode={self.mode!r}; choose 'min' or 'max'.")
        if self.save_top_k < -1:
            raise ConfigError(f"ModelCheckpoint has save_top_k={self.save_top_k}; -1 keeps all, and is the least.")
        given = {
            name: value
            for name in ("every_n_train_steps", "train_time_interval", "every_n_epochs")
            if (value := getattr(self, name)) is not None
        }
        for name, value in given.items():
            if value < (timedelta(0) if isinstance(value, timedelta) else 0):
                raise ConfigError(f"ModelCheckpoint has {name}={value!r}, which must not be negative.")
        if sum(bool(value) for value in given.values()) > 1:
            raise ConfigError(f"ModelCheckpoint has {', '.join(given)}, of which one can be set.")
        if not given:
            self.every_n_epochs = 1

    def _begin(self) -> None:
        self._going: set[str] = set()  # names of those that are kept no longer
        self._kept: dict[str, float] = {}  # name -> score, where lower is better
        self._last: str | None = None
        self._last_step = self._last_batch = -1
        self._left_out: tuple[int, float | None] | None = None
        self._prepared = False
        self._saved_at = 0.0

    # ---- what was kept -----------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """One state for each monitored metric and interval."""
        interval = self.every_n_train_steps or self.train_time_interval
        return f"ModelCheckpoint({self.monitor},{self.mode}{f',{interval}' if interval else ''})"

    @property
    def best_model_path(self) -> str:
        """URL of the best checkpoint so far; empty where there is none."""
        return self._path(self._best())

    @property
    def last_model_path(self) -> str:
        """URL of the newest checkpoint; empty where there is none."""
        return self._path(self._last)

    @property
    def kth_best_model_path(self) -> str:
        """URL of the worst of the best checkpoints; empty where there is none."""
        return self._path(max(self._kept, key=self._kept.__getitem__, default=None))

    @property
    def best_k_models(self) -> dict[str, torch.Tensor]:
        """The monitored metric of each of the best checkpoints, by URL."""
        return {self._path(name): self._value(score) for name, score in self._kept.items()}

    @property
    def best_model_score(self) -> torch.Tensor | None:
        """The monitored metric of the best checkpoint."""
        best = self._best()
        return None if best is None or self.monitor is None else self._value(self._kept[best])

    def meant(self, word: str, run: str) -> str:
        """URL of the "best" or "last" checkpoint made here, or else before: in the directory given, or in `run`."""
        made = self.best_model_path if word == "best" else self.last_model_path
        return made or join(self._given or run, word)

    def state_dict(self) -> dict[str, Any]:
        """Return what was kept so far."""
        return {
            "kept": dict(self._kept),
            "last": self._last,
            "going": sorted(self._going),
            "last_step": self._last_step,
            "last_batch": self._last_batch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was kept and is still there: what another run kept is not in this one's directory."""
        store = None if self.dirpath is None else open_store(self.dirpath)
        names = {*state["kept"], state["last"], *state.get("going", ())}
        there = {name for name in names if name and store and _is_there(store, name)}
        self._kept = {name: score for name, score in state["kept"].items() if name in there}
        self._going = {name for name in state.get("going", ()) if name in there}
        self._last = state["last"] if state["last"] in there else None
        self._last_step, self._last_batch = state["last_step"], state["last_batch"]

    def format_checkpoint_name(self, metrics: dict[str, Any]) -> str:
        """Return the name that the template makes of these values."""
        name = _FIELD.sub(lambda field: _filled(field, metrics, self.auto_insert_metric_name), self.filename)
        return _ODD.sub("_", name)

    # ---- when to save ------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin with nothing kept, in the directory of this run; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self._begin()
            self.dirpath = self._given
            if self.dirpath is None and trainer.run_directory is not None:
                self.dirpath = join(trainer.run_directory.store.url, CHECKPOINTS)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        """Begin to count the time."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save, where steps or time say so."""
        if not self._prepared and trainer.global_step > 0:
            self._prepared = True
            checkpoints.prepare(trainer, weights_only=self.save_weights_only)
        every, interval = self.every_n_train_steps, self.train_time_interval
        if not every and interval is None:
            return
        due = bool(every) and trainer.global_step > 0 and trainer.global_step % (every or 1) == 0
        if interval is not None:
            late = time.monotonic() - self._saved_at >= interval.total_seconds()
            due = trainer.strategy.broadcast(late) if trainer.world_size > 1 else late
        if due and self._is_new(trainer):
            self._saved_at = time.monotonic()
            self._offer(trainer, trained_only=True)

    def on_validation_end(self, trainer: Trainer, module: Module) -> None:
        """Save, where validations say so."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self._at_epoch_end(trainer):
            self._epoch(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Save, where epochs say so."""
        if self._at_epoch_end(trainer):
            self._epoch(trainer)

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        """Save what was left out while the store was away, where training has ended with it."""
        step, score = self._left_out or (-1, None)
        if step == trainer.global_step:
            self._save(trainer, score)

    def on_exception(self, trainer: Trainer, module: Module, exception: BaseException) -> None:
        """Save, where that is wanted."""
        if self.save_on_exception and isinstance(exception, Exception) and trainer.state.fn == "fit":
            self.save_interrupted(trainer)

    def save_interrupted(self, trainer: Trainer) -> None:
        """Save where the run stands, as the newest checkpoint, unless there is one already."""
        if trainer.progress.all_batches != self._last_batch:
            self._save(trainer, None, early=True)

    def offer(self, trainer: Trainer) -> None:
        """Save where the run stands, if it is good enough: also where weights have changed without a step."""
        score = self._score(trainer, trained_only=False)
        if score is not None and self.monitor is None:
            score = math.nextafter(score, -math.inf)  # later than what was saved after the same step
        if self._wanted(score):
            self._save(trainer, score)

    def _at_epoch_end(self, trainer: Trainer) -> bool:
        if self.save_on_train_epoch_end is not None:
            return self.save_on_train_epoch_end
        if not trainer.enable_validation:
            return True
        return trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0

    def _epoch(self, trainer: Trainer) -> None:
        every = self.every_n_epochs
        if every and (trainer.current_epoch + 1) % every == 0 and self._is_new(trainer):
            self._offer(trainer)

    def _is_new(self, trainer: Trainer) -> bool:
        return trainer.global_step != self._last_step and not trainer.fast_dev_run

    def _offer(self, trainer: Trainer, trained_only: bool = False) -> None:
        """Save, if the run is good enough now or the newest is kept in any case."""
        score = self._score(trainer, trained_only)
        if not self._wanted(score):
            return
        refused = trainer.is_global_zero and trainer.saver.writer.is_refused()
        if trainer.strategy.broadcast(refused):
            logger.warning(
                "The store has not taken the checkpoint before yet; that of step %d is left out.", trainer.global_step
            )
            self._left_out = (trainer.global_step, score)
        else:
            self._save(trainer, score, early=trained_only)

    # ---- which to keep -----------------------------------------------------------------------------------------------

    @property
    def _sign(self) -> float:
        return -1.0 if self.mode == "max" else 1.0

    def _value(self, score: float) -> torch.Tensor:
        return torch.tensor(self._sign * score if self.monitor is not None else score, dtype=torch.float64)

    def _path(self, name: str | None) -> str:
        return "" if name is None or self.dirpath is None else join(self.dirpath, name)

    def _score(self, trainer: Trainer, trained_only: bool) -> float | None:
        """The monitored value, such that lower is better; without one, later is better; None where it is not there.

        Before the first validation a metric may not have been logged yet: then nothing is best.
        """
        if self.monitor is None:
            return float(-trainer.global_step)
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            if trained_only and trainer.enable_validation:
                return None
            raise ConfigError(
                f"ModelCheckpoint monitors {self.monitor!r}, which nobody logged.{nearest(self.monitor, metrics)} "
                f"Logged: {', '.join(metrics) or 'nothing'}."
            )
        value = self._sign * float(metrics[self.monitor])
        return math.inf if math.isnan(value) else value

    def _best(self) -> str | None:
        return min(self._kept, key=self._kept.__getitem__, default=None)

    def _wanted(self, score: float | None) -> bool:
        if self.save_last:
            return True
        if score is None or self.save_top_k == 0:
            return False
        return self.save_top_k == -1 or len(self._kept) < self.save_top_k or score < max(self._kept.values())

    def _save(self, trainer: Trainer, score: float | None, early: bool = False) -> None:
        """Save; `early` says that what the name tells may not have been logged yet."""
        if self.dirpath is None:
            raise ConfigError("ModelCheckpoint has no directory: give it a dirpath, or the Trainer a default_root_dir.")
        trainer.saver.writer.wait()  # or a name that is being written would seem to be free
        store = open_store(self.dirpath)
        name = trainer.strategy.broadcast(self._free_name(store, trainer, early) if trainer.is_global_zero else None)
        before = {*self._going, *self._kept, *([] if self._last is None else [self._last])}
        # The state that goes into the checkpoint knows of it, so that a resumed run prunes what this one wrote.
        self._last, self._last_step, self._last_batch = name, trainer.global_step, trainer.progress.all_batches
        if score is not None:
            self._keep(name, score)
        self._going = before - {*self._kept, name}
        checkpoints.save(
            trainer,
            store.at(name),
            monitor=self.monitor,
            mode=self.mode if self.monitor else None,
            weights_only=self.save_weights_only,
            replace=not self.enable_version_counter,
            then=partial(self._after, trainer, store, name),
        )

    def _keep(self, name: str, score: float) -> None:
        if self.save_top_k == 0:
            return
        self._kept[name] = score
        while self.save_top_k != -1 and len(self._kept) > self.save_top_k:
            # Of equal ones the older stays: dicts keep their order, and max() returns the first of equals.
            worst = max(reversed(self._kept), key=self._kept.__getitem__)
            del self._kept[worst]

    def _after(self, trainer: Trainer, store: Store, name: str) -> None:
        """When a checkpoint is committed: point at it, and delete what it replaces."""
        if self.verbose:
            logger.info("Saved %s/%s at step %d.", store, name, self._last_step)
        # Of several in one directory the first says which is best.
        first = next(c for c in trainer.checkpoint_callbacks if c.dirpath == self.dirpath)
        for pointer, target in {"best": first._best() or name, "last": name}.items():  # noqa: SLF001 -- of this class
            run = trainer.run_directory
            if run is not None and self.dirpath == join(run.store.url, CHECKPOINTS):
                run.point(pointer, target)
            else:
                point(store, pointer, target)
        # What somebody reads stays until the next checkpoint has been committed.
        self._going = {each for each in self._going if not discard(store, each)}

    def _free_name(self, store: Store, trainer: Trainer, early: bool) -> str:
        values: dict[str, Any] = {field[1]: math.nan for field in _FIELD.finditer(self.filename) if early}
        values |= {**trainer.callback_metrics, "epoch": trainer.current_epoch, "step": trainer.global_step}
        name = self.format_checkpoint_name(values)
        if not self.enable_version_counter:
            return name
        taken, suffix = name, 0
        while _is_taken(store, taken):
            suffix += 1
            taken = f"{name}-v{suffix}"
        return taken


def _is_there(store: Store, name: str) -> bool:
    return store.at(name).exists(MANIFEST)


def _is_taken(store: Store, name: str) -> bool:
    """Whether the name is known to be taken; a store that is away now is left to the writer, which tries again."""
    try:
        return _is_there(store, name)
    except StoreError as error:
        logger.warning("%s Training goes on; %s is taken to be free.", error, name)
        return False


def _filled(field: re.Match[str], values: dict[str, Any], insert_name: bool) -> str:
    name, form = field[1], field[2] or ""
    if name not in values:
        raise ConfigError(f"filename names {name!r}, which nobody logged.{nearest(name, values)}")
    value = values[name]
    text = format(value if isinstance(value, int) else float(value), form[1:])
    return f"{name}={text}" if insert_name else text
