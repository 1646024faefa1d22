"""The Module: a torch module that knows how it is trained, validated and rebuilt."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from shipline.errors import ConfigError, TrainingError
from shipline.train.hooks import ModuleHooks
from shipline.train.loops.optimization import OptimizationHooks
from shipline.train.options.arguments import KeepsArguments

if TYPE_CHECKING:
    from shipline.signature import Signature
    from shipline.train.trainer import Trainer


class Module(KeepsArguments, nn.Module, ModuleHooks, OptimizationHooks):
    """A torch module with its training, validation and optimizers; names and meanings are PyTorch Lightning's.

    The constructor's arguments are kept as they are given (`hparams`), so that a checkpoint can rebuild the module.
    """

    #: Names, dtypes and shapes of what `forward` takes and gives; where None, export reads them off real rows.
    signature: Signature | None = None

    #: Whether `load_state_dict` refuses names that are missing or unexpected.
    strict_loading: bool = True
    #: A batch by which the summary knows sizes and FLOPs.
    example_input_array: Any = None

    _trainer_ref: weakref.ref[Trainer] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the constructor's arguments."""
        self = super().__new__(cls, *args, **kwargs)
        self.__dict__["_trainer_ref"] = None
        return self

    @property
    def trainer(self) -> Trainer:
        """The trainer that runs this module; TrainingError outside of a run."""
        trainer = self._trainer_ref() if self._trainer_ref is not None else None
        if trainer is None:
            raise TrainingError(
                f"{type(self).__name__} is not attached to a Trainer: call trainer.fit(module, data) first."
            )
        return trainer

    def attach(self, trainer: Trainer | None) -> None:
        """Make `trainer` the one that runs this module."""
        self.__dict__["_trainer_ref"] = None if trainer is None else weakref.ref(trainer)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_trainer_ref": None}

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        first: torch.Tensor | None = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def current_epoch(self) -> int:
        """The number of finished epochs, 0 outside of a run."""
        return self.trainer.current_epoch if self._trainer_ref is not None else 0

    @property
    def global_step(self) -> int:
        """The number of optimizer steps so far, 0 outside of a run."""
        return self.trainer.global_step if self._trainer_ref is not None else 0

    @property
    def global_rank(self) -> int:
        """The number of this worker, 0 outside of a run."""
        return self.trainer.global_rank if self._trainer_ref is not None else 0

    @property
    def local_rank(self) -> int:
        """The number of this worker on its machine, 0 outside of a run."""
        return self.trainer.local_rank if self._trainer_ref is not None else 0

    @property
    def logger(self) -> Any:
        """The first logger of the run, None outside of one."""
        return self.trainer.logger if self._trainer_ref is not None else None

    @property
    def loggers(self) -> list[Any]:
        """The loggers of the run."""
        return self.trainer.loggers if self._trainer_ref is not None else []

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), torch.get_default_dtype())

    @property
    def on_gpu(self) -> bool:
        """Whether the parameters are on a GPU."""
        return self.device.type == "cuda"

    def freeze(self) -> None:
        """Keep all parameters from being trained, and set evaluation mode."""
        self.requires_grad_(requires_grad=False)
        self.eval()

    def unfreeze(self) -> None:
        """Let all parameters be trained, and set training mode."""
        self.requires_grad_(requires_grad=True)
        self.train()

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Record a number. In training steps it is kept per step, elsewhere reduced over the epoch and all workers.

        Args:
            name: of the metric.
            value: one number, or a torchmetrics.Metric, which is computed and reset at the end of the epoch.
            prog_bar: show it in the progress bar.
            logger: give it to the loggers; default: yes.
            on_step: keep every `log_every_n_steps`-th value; default: in training steps only.
            on_epoch: reduce over the epoch; default: everywhere but in training steps. What is logged both ways has two
                names, such as `loss_step` and `loss_epoch`.
            reduce_fx: "mean" (weighted by rows), "sum", "min" or "max", or torch's function of that name.
            enable_graph: taken for Lightning's sake: what is logged never keeps a graph.
            sync_dist: reduce the values of steps over all workers, too; those of epochs always are.
            sync_dist_group: taken for Lightning's sake: it is always all workers.
            add_dataloader_idx: end the name in `/dataloader_idx_N` where several loaders are evaluated.
            batch_size: rows behind the value; default: read off the batch.
            metric_attribute: where the module holds the metric; default: found.
            rank_zero_only: record what the first worker logs only.
        """
        trainer = self._trainer
        if trainer is None or trainer.barebones or (rank_zero_only and not trainer.is_global_zero):
            return
        trainer.metrics.log(
            name, value, prog_bar, logger, on_step, on_epoch, reduce_fx, sync_dist, add_dataloader_idx, batch_size,
            metric_attribute,
        )  # fmt: skip

    @property
    def _trainer(self) -> Trainer | None:
        return self._trainer_ref() if self._trainer_ref is not None else None

    def log_dict(self, dictionary: Any, *args: Any, **options: Any) -> None:
        """Record several numbers, or a torchmetrics.MetricCollection, with the options of `log`."""
        whole = {"keep_base": False} if hasattr(dictionary, "_enable_compute_groups") else {}
        for name, value in dictionary.items(**whole):
            self.log(name, value, *args, **options)

    def all_gather(self, data: Any, group: Any = None, sync_grads: bool = False) -> Any:
        """Return every worker's tensors, stacked, in the form of `data`; with one worker, itself."""
        if isinstance(data, dict):
            return {key: self.all_gather(value, group, sync_grads) for key, value in data.items()}
        if isinstance(data, list | tuple):
            return type(data)(self.all_gather(value, group, sync_grads) for value in data)
        if isinstance(data, bool | int | float):
            data = torch.tensor(data, device=self.device)
        return self.trainer.strategy.all_gather(data, group, sync_grads) if isinstance(data, torch.Tensor) else data

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the first worker only."""
        self.trainer.print(*args, **kwargs)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss of a batch: a tensor, a dict with "loss", or None to skip the batch."""
        raise ConfigError(f"{type(self).__name__} has no training_step: define training_step(self, batch, batch_idx).")

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Log what validation measures. Export runs it through the exported graph, so let it call `self(...)`."""

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Log what the test measures; default: what validation does."""
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the predictions of a batch; default: `self(batch)`."""
        return self(batch)

    def configure_optimizers(self) -> Any:
        """Return an optimizer, or one with learning rate schedulers, in any of the forms that Lightning takes."""
        raise ConfigError(f"{type(self).__name__} has no configure_optimizers: return an optimizer from it.")

    def parallelize_plan(self) -> dict[str, Any]:
        """Return how single layers are cut among workers, for the strategy `tp`.

        A path of a part, in which `*` stands for any name, is given "colwise", "rowwise", "sequence", or a style of
        torch.distributed.tensor.parallel: `{"layers.*.up": "colwise", "layers.*.down": "rowwise"}`.
        """
        return {}

    def configure_pipeline(self) -> Sequence[nn.Module]:
        """Return the layers that `forward` runs one after another, for the strategy `pp`: all weights are in them."""
        return ()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str,
        map_location: Any = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **overrides: Any,
    ) -> Self:
        """Return a module of this class with the checkpoint's weights.

        Args:
            checkpoint_path: URL of a checkpoint.
            map_location: the device to put the module on; default: the CPU.
            strict: refuse names that are missing or unexpected; default: `strict_loading`.
            weights_only: taken for Lightning's sake: no checkpoint here can run code.
            overrides: constructor arguments that replace those in the checkpoint.

        Raises:
            ConfigError: it was trained with arguments that no checkpoint can keep; give them again.
            IntegrityError: the checkpoint is damaged, or is not of this class.
        """
        from shipline.checkpoint import open_checkpoint
        from shipline.train.checkpoints import load_module

        checkpoint = open_checkpoint(checkpoint_path)
        lost = [name for name in checkpoint.manifest.not_rebuildable if name not in overrides]
        if lost:  # a default must not silently take its place
            raise ConfigError(
                f"{cls.__name__} cannot be rebuilt from {checkpoint}: {', '.join(lost)} could not be kept, for only "
                f"plain data is. Give it again: load_from_checkpoint(..., {lost[0]}=...)."
            )
        module = cls(**{**checkpoint.manifest.hyper_parameters, **overrides})
        load_module(module, checkpoint, module.strict_loading if strict is None else strict)
        return module if map_location is None else module.to(map_location)


# A Lightning script runs with the import changed, `import shipline.train as pl`: docs/from_lightning.md.
LightningModule = Module
