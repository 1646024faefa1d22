"""How large a batch may be before memory runs out."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

from shipline.errors import ConfigError
from shipline.train.callbacks.callback import Callback
from shipline.train.data.limits import several
from shipline.train.data.module import Loaders
from shipline.train.loops.evaluation import run_steps, sources
from shipline.train.loops.fit import make_optimizers
from shipline.train.seed import isolate_rng
from shipline.train.trials.attribute import set_value, tuned_attribute, value_of
from shipline.train.trials.trial import train_steps, trial

if TYPE_CHECKING:
    from shipline.train.module import Module
    from shipline.train.trainer import Trainer

logger = logging.getLogger(__name__)

_MODES = ("power", "binsearch")
# What torch says when memory is short, by where.
_SHORT_OF_MEMORY = (
    "out of memory", "can't allocate memory", "CUDNN_STATUS_NOT_SUPPORTED", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip


class BatchSizeFinder(Callback):
    """Looks for the largest batch that fits into memory, before a stage begins, and lets it begin with that.

    Module, optimizer, generators and counters are afterwards as they were before. The loaders must come from the module
    or a DataModule that make them with an attribute for the batch size. A resumed run keeps what was found.

    Args:
        mode: "power" doubles the size until it does not fit; "binsearch" then looks between the last two, too.
        steps_per_trial: steps to try each size with.
        init_val: the size to begin with.
        max_trials: sizes to try.
        batch_arg_name: of the attribute of module or DataModule.
        margin: the share by which "binsearch" stays below what it found.
        max_val: the largest size to try.
    """

    def __init__(
        self,
        mode: Literal["power", "binsearch"] = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> None:
        if mode not in _MODES:
            raise ConfigError(f"BatchSizeFinder has mode={mode!r}; choose 'power' or 'binsearch'.")
        if not 0.0 <= margin < 1.0:
            raise ConfigError(f"BatchSizeFinder has margin={margin}; set a share from 0 on and below 1.")
        for name, value in {"steps_per_trial": steps_per_trial, "init_val": init_val, "max_trials": max_trials}.items():
            if value < 1:
                raise ConfigError(f"BatchSizeFinder has {name}={value}; set 1 or more.")
        self.optimal_batch_size: int | None = None
        self._mode = mode
        self._steps_per_trial = steps_per_trial
        self._init_val = init_val
        self._max_trials = max_trials
        self._batch_arg_name = batch_arg_name
        self._margin = margin
        self._max_val = max_val
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """Return what was found."""
        return {"optimal_batch_size": self.optimal_batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was found, so that it is not searched for again."""
        self.optimal_batch_size = state["optimal_batch_size"]
        self._resumed = self.optimal_batch_size is not None

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        """Begin with nothing found; a resumed run takes up its state afterwards.

        Raises:
            ConfigError: there are several workers, or loaders that are made already.
        """
        self.optimal_batch_size, self._resumed = None, False
        if trainer.world_size > 1:
            raise ConfigError(
                f"BatchSizeFinder works with one worker, and there are {trainer.world_size}: one that is short of "
                "memory would leave the others waiting. Find the size with one, and set it."
            )
        if isinstance(trainer.data, Loaders):
            raise ConfigError(
                "BatchSizeFinder needs loaders that can be made again: give a DataModule, or a module with "
                "train_dataloader, and not DataLoaders."
            )

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        """Search, unless the run goes on with what it found before."""
        if not self._resumed:
            self.scale_batch_size(trainer, module)
        elif self.optimal_batch_size is not None:
            set_value(trainer, self._attribute(trainer), self.optimal_batch_size)
            trainer.fit_data.reload()

    def on_validation_start(self, trainer: Trainer, module: Module) -> None:
        """Search, where validation is the stage."""
        if trainer.state.fn == "validate":
            self.scale_batch_size(trainer, module)

    def on_test_start(self, trainer: Trainer, module: Module) -> None:
        """Search."""
        self.scale_batch_size(trainer, module)

    def on_predict_start(self, trainer: Trainer, module: Module) -> None:
        """Search."""
        self.scale_batch_size(trainer, module)

    def scale_batch_size(self, trainer: Trainer, module: Module) -> None:
        """Search now. A subclass may call it at the start of an epoch, too.

        Raises:
            ConfigError: neither module nor DataModule have an attribute for the size; or one row is too much already.
        """
        if trainer.fast_dev_run:
            logger.info("fast_dev_run tries a few batches only: no batch size is searched for.")
            return
        name = self._attribute(trainer)
        before = value_of(trainer, name)
        try:
            size = self._search(lambda size: self._fits(trainer, name, size))
        except BaseException:
            set_value(trainer, name, before)
            raise
        if size == 0:
            set_value(trainer, name, before)
            raise ConfigError(
                f"BatchSizeFinder has found no batch size that fits into memory, down from init_val={self._init_val}: "
                "use a smaller module or rows, precision='bf16-mixed', or a device with more memory."
            )
        self.optimal_batch_size = size
        set_value(trainer, name, size)
        logger.info("The batch size is set to %d.", size)
        self._renew(trainer)

    def _attribute(self, trainer: Trainer) -> str:
        return tuned_attribute(trainer, (self._batch_arg_name,), "batch_arg_name")

    def _search(self, fits: Callable[[int], tuple[bool, int | None]]) -> int:
        """Return the largest size found to fit, 0 for none. `fits` says whether one does, and how many rows there are.

        Sizes are doubled while they fit, and halved while none has; "binsearch" then goes on between the two.
        """
        size, low, high = min(self._init_val, self._max_val), 0, 0
        for _ in range(self._max_trials):
            fit, rows = fits(size)
            low, high = (size, high) if fit else (low, size)
            if not high:
                following = min(2 * low, self._max_val)
                if low >= self._max_val or (rows is not None and low >= rows):
                    break
            elif not low or (self._mode == "binsearch" and high - low > 1):
                following = (low + high) // 2
            else:
                break
            if not following:
                break
            size = following
        return max(1, int(low * (1 - self._margin))) if low and self._mode == "binsearch" else low

    def _fits(self, trainer: Trainer, name: str, size: int) -> tuple[bool, int | None]:
        set_value(trainer, name, size)
        error: Exception | None = None
        rows = None
        try:
            rows = self._try(trainer)
        except (RuntimeError, MemoryError) as caught:
            error = caught.with_traceback(None)  # it would hold what did not fit
        if error is not None:
            if not _is_short_of_memory(error):
                raise error
            _free_memory()
        logger.info("A batch size of %d %s.", size, "fits" if error is None else "does not fit")
        return error is None, rows

    def _try(self, trainer: Trainer) -> int | None:
        """Make some steps of the stage; return how many rows its first loader has, None where nobody knows."""
        fn = trainer.state.fn
        if fn == "fit":
            with trial(trainer, nonfinite_loss="ignore") as other:
                train_steps(other, self._steps_per_trial)
                return _rows(other.fit_data.train_loader)
        with trial(trainer) as other:
            loaders = _stage_loaders(other)
            other.sources = sources(other, loaders, None)
            name: Any = "validation" if fn == "validate" else fn
            stage: Any = None if fn == "predict" else fn
            with other.metrics.stage(stage):
                run_steps(other, name, self._steps_per_trial)
            return _rows(loaders)

    def _renew(self, trainer: Trainer) -> None:
        """Let the stage go on with loaders, and what counts their batches, made with the new size."""
        if trainer.state.fn == "fit":
            trainer.fit_data.reload()
            if not trainer.progress.all_batches:
                with isolate_rng():
                    make_optimizers(trainer)
            return
        limit = getattr(trainer, f"limit_{'val' if trainer.state.fn == 'validate' else trainer.state.fn}_batches")
        trainer.sources = sources(trainer, _stage_loaders(trainer), limit)


def _stage_loaders(trainer: Trainer) -> Any:
    data, fn = trainer.data, trainer.state.fn
    make = {"validate": data.val_dataloader, "test": data.test_dataloader, "predict": data.predict_dataloader}
    return make[str(fn)]()


def _rows(loaders: Any) -> int | None:
    for loader in several(loaders):
        with contextlib.suppress(TypeError, AttributeError, NotImplementedError):
            return len(loader.dataset)
    return None


def _is_short_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SHORT_OF_MEMORY)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
