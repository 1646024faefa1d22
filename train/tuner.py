"""Learning rate and batch size, found without a fit; names and meanings are PyTorch Lightning's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from shipline.errors import ConfigError
from shipline.train.callbacks.batch_size_finder import BatchSizeFinder
from shipline.train.callbacks.callback import Callback
from shipline.train.callbacks.lr_finder import LearningRateFinder, LRFinder
from shipline.train.lightning import as_module, attach
from shipline.train.profilers import PassThroughProfiler

if TYPE_CHECKING:
    from shipline.train.trainer import Trainer

Method = Literal["fit", "validate", "test", "predict"]


class Tuner:
    """Finds a learning rate or a batch size with the settings of a Trainer, which is left as it is.

    The attribute of the module or the DataModule is set to what was found. Nothing is written.

    Args:
        trainer: whose settings to use; of its callbacks none is called.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def lr_find(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: Method = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> LRFinder | None:
        """Return what was found; for the options see LearningRateFinder, for the loaders `Trainer.fit`."""
        if method != "fit":
            raise ConfigError(f"lr_find has method={method!r}; a learning rate is found for 'fit' only.")
        finder = LearningRateFinder(min_lr, max_lr, num_training, mode, early_stop_threshold, update_attr, attr_name)
        self._run(finder, method, model, train_dataloaders, val_dataloaders, dataloaders, datamodule)
        return finder.optimal_lr

    def scale_batch_size(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        method: Method = "fit",
        mode: Literal["power", "binsearch"] = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.05,
        max_val: int = 8192,
    ) -> int | None:
        """Return what was found; for the options see BatchSizeFinder, for the loaders `Trainer.fit` and the others."""
        finder = BatchSizeFinder(mode, steps_per_trial, init_val, max_trials, batch_arg_name, margin, max_val)
        self._run(finder, method, model, train_dataloaders, val_dataloaders, dataloaders, datamodule)
        return finder.optimal_batch_size

    def _run(
        self,
        finder: Callback,
        method: Method,
        model: Any,
        train_dataloaders: Any,
        val_dataloaders: Any,
        dataloaders: Any,
        datamodule: Any,
    ) -> None:
        """Begin a stage with the finder, and end it when that has found something."""
        if self._trainer.workers > 1:
            raise ConfigError(
                f"Tuner works in this process, and its Trainer has workers={self._trainer.workers}: give it one with a "
                "single worker, or the LearningRateFinder to yours as a callback."
            )
        try:
            self._begin(self._scout(finder), method, model, train_dataloaders, val_dataloaders, dataloaders, datamodule)
        finally:
            attach(as_module(model), self._trainer)

    @staticmethod
    def _begin(
        trainer: Trainer,
        method: Method,
        model: Any,
        train_dataloaders: Any,
        val_dataloaders: Any,
        dataloaders: Any,
        datamodule: Any,
    ) -> None:
        if method == "fit":
            if dataloaders is not None:
                raise ConfigError(
                    "Tuner has method='fit': give train_dataloaders and val_dataloaders, not dataloaders."
                )
            trainer.fit(model, train_dataloaders, val_dataloaders, datamodule)
            return
        if train_dataloaders is not None or val_dataloaders is not None:
            raise ConfigError(f"Tuner has method={method!r}: give dataloaders, not those of a fit.")
        if method not in ("validate", "test", "predict"):
            raise ConfigError(f"Tuner has method={method!r}; choose 'fit', 'validate', 'test' or 'predict'.")
        getattr(trainer, method)(model, dataloaders, datamodule=datamodule)

    def _scout(self, finder: Callback) -> Trainer:
        scout: Trainer = object.__new__(type(self._trainer))
        scout.__dict__.update(self._trainer.__dict__)
        scout.callbacks, scout.loggers, scout.profiler = [finder, _End()], [], PassThroughProfiler()
        scout.min_epochs = scout.min_steps = scout.num_sanity_val_steps = 0
        scout.reset()
        return scout


class _End(Callback):
    """Leaves nothing to do for the stage that begins."""

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        trainer.should_stop = True

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        trainer.sources = []

    on_test_start = on_predict_start = on_validation_start
