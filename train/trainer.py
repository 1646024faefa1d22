"""The Trainer: fit, validate, test, predict."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shipline.checkpoint import Checkpoint, open_checkpoint
from shipline.errors import ConfigError, NotFoundError, TrainingError
from shipline.lineage import Lineage, publishable
from shipline.store import absolute, join, open_store
from shipline.train import checkpoints, distributed, loops
from shipline.train.accelerators import pick_accelerator, ray_resource
from shipline.train.compiling import compiled_as
from shipline.train.data.adopt import as_data
from shipline.train.distributed import first_does
from shipline.train.lightning import as_module, attach, tell
from shipline.train.options.described import Description, described
from shipline.train.records import Background, Code
from shipline.train.records.records import first_record, job_of
from shipline.train.run import Run, RunDirectory, last_of_job
from shipline.train.runtime import Runtime
from shipline.train.seed import current_seed
from shipline.train.settings import with_callbacks
from shipline.train.strategies import pick_strategy, waiting
from shipline.train.worker import explained_by_all, let_go, run_worker

if TYPE_CHECKING:
    from shipline.train.data import DataModule
    from shipline.train.environments import ClusterEnvironment
    from shipline.train.module import Module
    from shipline.train.plain import Loop
    from shipline.train.stage import Work

logger = logging.getLogger(__name__)


class Trainer(Runtime):
    """Trains, validates, tests and predicts; names and meanings are PyTorch Lightning's.

    Its options are those of `shipline.train.settings.Settings`.
    """

    # ---- entry points ------------------------------------------------------------------------------------------------

    def fit(
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Run:
        """Train the module.

        Args:
            model: the Module (or LightningModule) to train; it holds the final weights afterwards.
            train_dataloaders: a loader of training batches, several in a list or dict, or a DataModule.
            val_dataloaders: a loader of validation batches, or several.
            datamodule: instead of the loaders.
            ckpt_path: URL of a checkpoint to go on from, or "last" or "best" of this trainer's run, or else of this
                experiment; "auto" is the last, if there is one yet: for what is started again by itself.
            weights_only: taken for Lightning's sake: no checkpoint here can run code.

        Raises:
            ConfigError: a setting does not fit; found before training where that is possible.
            TrainingError: the run failed.
        """
        module = self._take(model)
        data = as_data(module, datamodule, train=train_dataloaders, val=val_dataloaders)
        resume = self._begin_run(
            type(module), type(module).__name__.lower(), ckpt_path, {"module": module, "data": data.adopted}
        )
        self._launch_run("fit", module, data, resume)
        return self._result(module, data)

    def run(self, function: Callable[[Loop], Any], ckpt_path: str | None = None) -> Run:
        """Run a plain PyTorch loop of the user's own, with launch, store, checkpoints and resume.

        Args:
            function: is given a `shipline.train.plain.Loop`; what it returns is the Run's `result`.
            ckpt_path: as in `fit`.

        Raises:
            ConfigError: a setting does not fit.
        """
        named = function if hasattr(function, "__qualname__") else type(function)
        resume = self._begin_run(named, named.__name__.lower().strip("<>"), ckpt_path, {})
        result = self._launch_run("run", function, None, resume)
        run = self._result(None, None)
        return replace(run, result=result, last_url=run.url and f"{run.url}/last")

    def validate(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Return what `validation_step` logs over the validation data, one dict for each loader.

        Args:
            model: the module; default: the one that was trained last, with its best weights.
            dataloaders: a loader or several, or a DataModule.
            ckpt_path: URL of a checkpoint whose weights to take, or "best" or "last".
            verbose: print a table, where the progress bar is on.
            datamodule: instead of the loaders.
            weights_only: taken for Lightning's sake: no checkpoint here can run code.
        """
        return self._evaluate("validate", model, dataloaders, ckpt_path, verbose, datamodule)

    def test(
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: Any = None,
        weights_only: bool | None = None,
    ) -> list[dict[str, float]]:
        """Return what `test_step` logs over the test data, one dict for each loader. For arguments: `validate`."""
        return self._evaluate("test", model, dataloaders, ckpt_path, verbose, datamodule)

    def predict(
        self,
        model: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        return_predictions: bool = True,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> list[Any]:
        """Return what `predict_step` returns for each batch of the data; of several loaders, a list for each."""
        module = self._with_weights(model, ckpt_path)
        data = as_data(module, datamodule, predict=dataloaders)
        predictions: list[list[Any]] = self._launch("predict", module, data, keep=return_predictions)
        return predictions[0] if len(predictions) == 1 else predictions

    def save_checkpoint(self, filepath: str, weights_only: bool = False) -> None:
        """Commit the run as it is now to a directory of that URL, and wait for it; every worker must call it."""
        if not hasattr(self, "loss_check"):
            raise TrainingError("There is no run to save: call fit first, or save in a hook while workers train.")
        checkpoints.save(self, open_store(absolute(filepath)), weights_only=weights_only)
        self.saver.writer.wait()
        self.saver.writer.close()  # there may be no stage that would
        self.strategy.barrier()

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _take(self, model: Any) -> Any:
        """Take the module and the callbacks that it brings along."""
        module = as_module(model)
        if model is not getattr(self, "module", None):
            self.compiled_as = compiled_as(model)
        attach(module, self)
        self.callbacks = with_callbacks(self.callbacks, module.configure_callbacks())
        return module

    def _with_weights(self, model: Any, ckpt_path: str | None) -> Any:
        """Take the module, with the weights of a checkpoint where one is named."""
        if model is None:
            if not hasattr(self, "module"):
                raise ConfigError("Which module? Give one, or call fit first.")
            model = self.module
            ckpt_path = "best" if ckpt_path is None and self.checkpoint_callback is not None else ckpt_path
        module = self._take(model)
        if ckpt_path is not None:
            ckpt_path = "last" if ckpt_path == "auto" else ckpt_path
            checkpoint = self._find_checkpoint(ckpt_path, self.name or type(module).__name__.lower())
            assert checkpoint is not None
            checkpoints.load_module(module, checkpoint)
            self.ckpt_path = checkpoint.store.url
        return module

    def _evaluate(
        self,
        stage: Literal["validate", "test"],
        model: Any,
        dataloaders: Any,
        ckpt_path: str | None,
        verbose: bool,
        datamodule: Any,
    ) -> list[dict[str, float]]:
        module = self._with_weights(model, ckpt_path)
        loaders = {"val" if stage == "validate" else "test": dataloaders}
        found: list[dict[str, float]] = self._launch(stage, module, as_data(module, datamodule, **loaders))
        if verbose and self.is_global_zero and (bar := self.progress_bar_callback) is not None:
            bar.print_results(stage, found)
        return found

    def _launch(self, stage: Work, module: Any, data: DataModule | None, **options: Any) -> Any:
        """Run a stage here, or on several workers."""
        try:
            return self._run(stage, module, data, **options)
        finally:
            tell(self.callbacks)

    def _run(self, stage: Work, module: Any, data: DataModule | None, **options: Any) -> Any:
        if (group := self.started_by) is not None:
            return self._run_joined(group, stage, module, data, **options)
        if self.workers > 1:
            if self.compiled_as is not None:
                raise ConfigError(
                    f"Trainer has workers={self.workers}, to which what torch.compile returned cannot be sent: give "
                    "the module itself, and set Trainer(compile=True), or to torch.compile's options."
                )
            from shipline.train.launch.driver import launch

            return launch(self, module, data, stage, **options)
        strategy = pick_strategy(self.strategy_setting, self.workers)
        return loops.run(self, stage, module, data, strategy, **options)

    def _run_joined(
        self, group: ClusterEnvironment, stage: Work, module: Any, data: DataModule | None, **options: Any
    ) -> Any:
        """Run a stage as one of the workers that were started together."""
        self._join()
        try:
            strategy = pick_strategy(self.strategy_setting, self.workers)
            return run_worker(self, stage, module, data, strategy, current_seed(), **options)
        except BaseException as error:
            let_go(error)
            if not isinstance(error, Exception):
                raise
            explained = explained_by_all(error, group.global_rank(), self.workers)
            distributed.leave()
            self.strategy = waiting(group)
            if explained is error:
                raise
            raise explained from error
        finally:
            self.step = None  # which holds the process group

    def _join(self) -> None:
        """Meet the workers that were started with this one, if there are any."""
        if (group := self.started_by) is not None:
            distributed.join(group, pick_accelerator(self._accelerator).device(group.local_rank()))

    def _launch_run(self, stage: Work, what: Any, data: DataModule | None, resume: Checkpoint | None) -> Any:
        """Run what has a directory, and see that its records say so if it ends before they begin."""
        try:
            return self._launch(stage, what, data, resume=resume)
        except BaseException as error:
            if self.run_directory is not None:
                self.records.fail(self.run_directory.store, error)
            raise

    def _begin_run(self, what: Any, name: str, ckpt_path: str | None, parts: dict[str, Any]) -> Checkpoint | None:
        """Forget the run before, find what to go on from, and take a directory for the records of `what`.

        Its settings are those of the command line, or those of this trainer and of its `parts`: module and data.
        """
        self._check_accelerator()  # before anything is written
        self._join()
        self.reset()
        name = self.name or name
        resume = self._agreed_checkpoint(ckpt_path, name)
        self.ckpt_path = None if resume is None else resume.store.url
        self.description = Description(self.config) if self.config else described(self, parts)
        self.code = Background(partial(Code.found, _directory_of(what), self._own_directory()))
        content = publishable(self.description.content)
        self.lineage = Lineage(config=content, seed=current_seed(), world_size=self.workers)
        opened = partial(self._open_run, f"{what.__module__}.{what.__qualname__}", name, resume)
        self.run_directory = opened() if self.started_by is None else first_does(opened)
        return resume

    def _check_accelerator(self) -> None:
        """Who drives workers elsewhere needs none himself: so does the head of a cluster."""
        elsewhere = "RAY_ADDRESS" in os.environ or "ray" in sys.modules
        if self.workers > 1 and self.started_by is None and elsewhere:
            ray_resource(self._accelerator)
        else:
            pick_accelerator(self._accelerator)

    def _agreed_checkpoint(self, ckpt_path: str | None, name: str) -> Checkpoint | None:
        """Return what a run goes on from: the first worker finds it, and all take the same.

        A job that was given back to its queue goes on from where it was, whatever it began with.
        """
        experiment = join(self.default_root_dir, name)
        found: list[Checkpoint | None] = []

        def find() -> str | None:
            own = None
            if self.environment is not None:
                elsewhere = [url for url in self._meant("last", name) if url != join(experiment, "last")]
                own = last_of_job(experiment, self.environment, elsewhere)
            found.append(self._find_checkpoint(own or ckpt_path, name))
            return None if found[0] is None else found[0].store.url

        url = find() if self.started_by is None else first_does(find)
        if found or url is None:
            return found[0] if found else None
        return open_checkpoint(url)  # the first has read all of it

    def _find_checkpoint(self, ckpt_path: str | None, name: str) -> Checkpoint | None:
        if ckpt_path is None:
            return None
        if ckpt_path == "auto":
            try:
                return self._find_checkpoint("last", name)
            except NotFoundError:
                logger.info("There is no checkpoint of %s yet: the run begins.", join(self.default_root_dir, name))
                return None
        if ckpt_path in ("last", "best"):
            return checkpoints.newest(self._meant(ckpt_path, name))
        return checkpoints.find_checkpoint(absolute(ckpt_path))

    def _meant(self, word: str, name: str) -> list[str]:
        """Where "best" or "last" may be: in this trainer's own run, or, before it has one, in the experiment's newest.

        As in Lightning, the best is that of the first ModelCheckpoint, and the last the newest of all.
        """
        own = self.run_directory
        run = join(self.default_root_dir, name) if own is None else own.store.url
        kept = self.checkpoint_callbacks[: 1 if word == "best" else None]
        return list(dict.fromkeys(callback.meant(word, run) for callback in kept)) or [join(run, word)]

    def _open_run(self, what: str, name: str, resume: Checkpoint | None) -> RunDirectory | None:
        """Go on in the directory of the run that is resumed, if it is of this experiment; else take a new one."""
        if not self.loggers and self.checkpoint_callback is None:
            return None
        run = RunDirectory.of(resume) if resume is not None else None
        if run is not None and run.experiment == join(self.default_root_dir, name):
            return run
        return RunDirectory.create(self.default_root_dir, name, first_record(what, self.lineage_so_far, job_of(self)))

    def _own_directory(self) -> Path | None:
        """Where runs lie on this machine: what they write does not change the user's code."""
        root = self.default_root_dir.removeprefix("file://")
        return None if "://" in root else Path(root)

    def _result(self, model: Module | None, data: DataModule | None) -> Run:
        kept = self.checkpoint_callback
        return Run(
            url=None if self.run_directory is None else str(self.run_directory.store),
            metrics={name: float(value) for name, value in self.callback_metrics.items()},
            best_url=None if kept is None else kept.best_model_path or None,
            last_url=None if kept is None else kept.last_model_path or None,
            module=model,
            data=data,
        )


def _directory_of(what: Any) -> Path | None:
    """Where the user's code lies: its repository is the one that counts."""
    file = getattr(sys.modules.get(what.__module__), "__file__", None)
    return None if file is None else Path(file).parent
