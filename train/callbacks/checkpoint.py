"""Which checkpoints of a run are kept, and what `best` and `last` mean."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal

from shipline.checkpoint import POINTERS
from shipline.errors import ConfigError, nearest
from shipline.store import Store, absolute, join, open_store, write_pointers
from shipline.store.commit import MANIFEST, discard
from shipline.train import checkpointing
from shipline.train.callbacks.base import Callback
from shipline.train.run import CHECKPOINTS

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

_FIELD = re.compile(r"\{([^{}:]+)(:[^{}]*)?\}")
_ODD = re.compile(r"[^A-Za-z0-9._=,+@-]")


class ModelCheckpoint(Callback):
    """Saves a checkpoint at the end of an epoch, keeps the best ones, and points `best` and `last` at them.

    Args:
        dirpath: URL of a directory for the checkpoints; default: `checkpoints` in the run's directory.
        filename: template of a checkpoint's name, such as "{epoch}-{val_acc:.3f}".
        monitor: the logged metric that decides which is best; default: the newest is.
        mode: "min" or "max" of that metric is best.
        save_top_k: how many of the best to keep; -1 keeps all.
        save_last: keep the newest one too, so that a run can always be resumed where it ended.
        every_n_epochs: save at every n-th epoch only.
    """

    monitors = True

    def __init__(
        self,
        *,
        dirpath: str | None = None,
        filename: str = "{epoch}-{step}",
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        save_last: bool = True,
        every_n_epochs: int = 1,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigError(f"ModelCheckpoint has mode={mode!r}; choose 'min' or 'max'.")
        if save_top_k < -1 or every_n_epochs < 1:
            raise ConfigError(
                f"ModelCheckpoint has {save_top_k=}, {every_n_epochs=}; -1 and 1 are the least they can be."
            )
        self._given = None if dirpath is None else absolute(dirpath)
        self.dirpath = self._given
        self.filename = filename
        self.monitor = monitor
        self.mode: Literal["min", "max"] = mode
        self.save_top_k = save_top_k
        self.save_last = save_last
        self.every_n_epochs = every_n_epochs
        self._kept: dict[str, float] = {}  # name -> score, where lower is better
        self._last: str | None = None

    @property
    def state_key(self) -> str:
        """One state for each monitored metric."""
        return f"ModelCheckpoint({self.monitor},{self.mode})"

    @property
    def best_model_path(self) -> str | None:
        """URL of the best checkpoint so far."""
        best = self._best()
        return None if best is None or self.dirpath is None else join(self.dirpath, best)

    @property
    def last_model_path(self) -> str | None:
        """URL of the newest checkpoint."""
        return None if self._last is None or self.dirpath is None else join(self.dirpath, self._last)

    @property
    def best_model_score(self) -> float | None:
        """The monitored metric of the best checkpoint."""
        best = self._best()
        return None if best is None or self.monitor is None else self._sign * self._kept[best]

    def state_dict(self) -> dict[str, Any]:
        """Return what was kept so far."""
        return {"kept": dict(self._kept), "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was kept and is still there: what another run kept is not in this one's directory."""
        store = None if self.dirpath is None else open_store(self.dirpath)
        there = {name for name in {*state["kept"], state["last"]} if name and store and _is_there(store, name)}
        self._kept = {name: score for name, score in state["kept"].items() if name in there}
        self._last = state["last"] if state["last"] in there else None

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin with nothing kept, in the directory of this run; a resumed run takes up its state afterwards."""
        if stage == "fit":
            self._kept, self._last = {}, None
            self.dirpath = self._given
            if self.dirpath is None and trainer.run is not None:
                self.dirpath = join(trainer.run.store.url, CHECKPOINTS)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        """Save, where this epoch is one to be kept."""
        if (trainer.current_epoch + 1) % self.every_n_epochs or not trainer.validated_this_epoch:
            return
        score = self._score(trainer)
        if self._wanted(score):
            self._save(trainer, score)

    @property
    def _sign(self) -> float:
        return -1.0 if self.mode == "max" else 1.0

    def _score(self, trainer: Trainer) -> float:
        """The monitored value, such that lower is better; without one, later is better."""
        if self.monitor is None:
            return float(-trainer.global_step)
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ConfigError(
                f"ModelCheckpoint monitors {self.monitor!r}, which nobody logged.{nearest(self.monitor, metrics)} "
                f"Logged: {', '.join(metrics) or 'nothing'}."
            )
        value = self._sign * float(metrics[self.monitor])
        return math.inf if math.isnan(value) else value

    def _best(self) -> str | None:
        return min(self._kept, key=self._kept.__getitem__, default=None)

    def _wanted(self, score: float) -> bool:
        among_best = (
            self.save_top_k == -1 or len(self._kept) < self.save_top_k or score < max(self._kept.values(), default=0)
        )
        return self.save_last or (self.save_top_k != 0 and among_best)

    def _save(self, trainer: Trainer, score: float) -> None:
        if self.dirpath is None:
            raise ConfigError("ModelCheckpoint has no directory: give it a dirpath, or the Trainer a default_root_dir.")
        store = open_store(self.dirpath)
        name = self._free_name(store, trainer) if trainer.is_global_zero else None
        before = {*self._kept, self._last}
        # The state that goes into the checkpoint knows of it, so that a resumed run prunes what this one wrote.
        name = trainer.strategy.gather(name)[0]
        assert name is not None
        self._last = name
        self._keep(name, score)
        checkpointing.save(trainer, store.at(name), monitor=self.monitor, mode=self.mode if self.monitor else None)
        if trainer.is_global_zero:
            self._point(trainer, store)
            for old in before - {*self._kept, self._last, None}:
                discard(store, str(old))

    def _keep(self, name: str, score: float) -> None:
        self._kept[name] = score
        while self.save_top_k != -1 and len(self._kept) > self.save_top_k:
            # Of equal ones the older stays: dicts keep their order, and max() returns the first of equals.
            worst = max(reversed(self._kept), key=self._kept.__getitem__)
            del self._kept[worst]

    def _point(self, trainer: Trainer, store: Store) -> None:
        names = {"best": self._best() or self._last, "last": self._last}
        for pointer, name in names.items():
            assert name is not None
            if trainer.run is not None and self.dirpath == join(trainer.run.store.url, CHECKPOINTS):
                trainer.run.point(pointer, name)
            else:
                write_pointers(store, POINTERS, {pointer: {"checkpoint": name}})

    def _free_name(self, store: Store, trainer: Trainer) -> str:
        values = {**trainer.callback_metrics, "epoch": trainer.current_epoch, "step": trainer.global_step}
        name = _FIELD.sub(lambda field: _filled(field, values), self.filename)
        name = _ODD.sub("_", name)
        taken, suffix = name, 0
        while _is_there(store, taken):
            suffix += 1
            taken = f"{name}-v{suffix}"
        return taken


def _is_there(store: Store, name: str) -> bool:
    return store.at(name).exists(MANIFEST)


def _filled(field: re.Match[str], values: dict[str, Any]) -> str:
    name, form = field[1], field[2] or ""
    if name not in values:
        raise ConfigError(f"filename names {name!r}, which nobody logged.{nearest(name, values)}")
    value = values[name]
    return f"{name}={format(value if isinstance(value, int) else float(value), form[1:])}"
